"""`python -m samtl.cli` is `samtl`."""

from . import main

main()

"""The figures and tables of a comparison: curves, distributions, matrices, costs, scores, provenance."""

from samtl.report import style as style  # first, since it checks that matplotlib is installed

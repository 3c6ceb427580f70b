"""Every error that a user can cause, with the exit code that the command line ends with.

::

    SamtlError                 anything samtl reports itself
    ├── InputError         2   an argument, a file or a dataset is not what it must be
    │   ├── UnknownName    2   no dataset, encoder or head of that name
    │   └── DamageError    2   a store holds something other than what its records say
    ├── MismatchError      3   the store was made with another fingerprint or dataset
    └── ResourceError      5   disk, device or network gave out

Each message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

_LISTED = 50  # names in a message

# Beside the codes above: done, with quarantined rows or failed cells.
EXIT_QUARANTINED = EXIT_FAILED_CELLS = 1


class SamtlError(Exception):
    """Base of all errors that samtl raises on purpose."""

    exit_code = 2  #: of the command line

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to another process, whatever the class's own arguments are."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[SamtlError], arguments: tuple[object, ...], state: dict[str, object]
) -> SamtlError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class InputError(SamtlError):
    """An argument, a file or a dataset is not what it must be."""


class UnknownName(InputError, LookupError):
    """A name that nothing goes by; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = list(known)
        bare = {
            known.lstrip("-"): known for known in names
        }  # two dashes alone make no options near
        found = difflib.get_close_matches(name.lstrip("-"), bare, n=3, cutoff=0.5)
        near = [bare[one] for one in found]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = ", ".join(names[:_LISTED])
        super().__init__(f"no {kind} is called {name!r}: {hint}known are {listed}{more}")


class DamageError(InputError):
    """Bytes in a store differ from what its commit records say."""


class MismatchError(SamtlError):
    """A store was made in another way than the one asked for.

    Parameters
    ----------
    message : str
        What was compared and what to do.
    differences : sequence of (field, stored, wanted)
        One entry for each field that differs, as printable text.
    """

    exit_code = 3

    def __init__(self, message: str, differences: Sequence[tuple[str, str, str]]) -> None:
        lines = [f"  {name}: the store has {a}, asked for is {b}" for name, a, b in differences]
        super().__init__("\n".join([message, *lines]))
        self.differences = list(differences)


class ResourceError(SamtlError):
    """The disk, the device or the network gave out."""

    exit_code = 5


@contextmanager
def writing(
    what: str, remedy: str = "choose another place with --out, or make room"
) -> Iterator[None]:
    """Turn an OSError within a `with` block into a `ResourceError` that says what is written, where, and a remedy."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ResourceError(f"cannot write {what}: {why}; {remedy}") from error


def require_extra(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency; InputError, which names the extra, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"this needs {module.partition('.')[0]}, which is not installed: pip install 'samtl[{extra}]'"
        ) from error

"""Options of the verbs, taken from the library's functions: an option is declared and described once, there.

The source of the function is read, not imported, so that `samtl VERB --help` does not wait for torch.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from samtl.errors import InputError

# Parameters that are for programs.
_NOT_OPTIONS = frozenset({"on_event", "on_row", "should_stop", "params"})


@dataclass(frozen=True)
class Declared:
    """A parameter of a library function.

    Attributes
    ----------
    annotation : str
        As written in the source.
    default : object
        `inspect.Parameter.empty` if the function requires it.
    help : str
        Its description in the docstring, on one line.
    """

    annotation: str
    default: Any
    help: str


@functools.cache
def _source(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def declared(target: str) -> dict[str, Declared]:
    """Read the parameters of a function from its source and its numpydoc docstring.

    Parameters
    ----------
    target : str
        `MODULE:FUNCTION`.
    """
    module, _, name = target.partition(":")
    function = next(
        node
        for node in _source(module).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    described = _descriptions(ast.get_docstring(function) or "")
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults))
    pairs = [
        *zip(positional, [*defaults, *spec.defaults], strict=True),
        *zip(spec.kwonlyargs, spec.kw_defaults, strict=True),
    ]
    return {
        argument.arg: Declared(
            ast.unparse(argument.annotation) if argument.annotation else "str",
            inspect.Parameter.empty if default is None else _value(module, default),
            described.get(argument.arg, ""),
        )
        for argument, default in pairs
        if argument.arg not in _NOT_OPTIONS
    }


def _descriptions(docstring: str) -> dict[str, str]:
    """Map the names in the section `Parameters` of a numpydoc docstring to their descriptions."""
    _, _, section = docstring.partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line, following in zip(lines := section.splitlines(), [*lines[1:], ""], strict=True):
        if following.startswith("---"):
            break
        if line and not line.startswith(" "):
            names = [name.strip(" *") for name in line.partition(" : ")[0].split(",")]
        for name in names if line.startswith(" ") else ():
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _value(module: str, node: ast.expr) -> Any:
    """Evaluate a default: a literal, or the name of a constant of the module or of one that it imports from."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    for statement in _source(module).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == node.id:
            return _value(module, statement.value)
        if isinstance(statement, ast.ImportFrom) and statement.module:
            if any((alias.asname or alias.name) == node.id for alias in statement.names):
                return _value(statement.module, node)
    raise LookupError(f"{module} has no constant {node.id}")


def _type(annotation: str) -> Any:
    """Choose the type that typer parses a parameter as; None is for options that may be left out."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    optional = "None" in kinds
    kinds = [kind for kind in kinds if kind != "None"]
    found: Any = (
        {"bool": bool, "int": int, "float": float}.get(kinds[0], str) if len(kinds) == 1 else str
    )
    return found | None if optional else found


def verb(
    target: str, *, rename: Mapping[str, str] | None = None, skip: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a typer command of a function that calls a verb of the library.

    The command has an option for each parameter of `target`, and those that the decorated function declares itself.
    The function is called with a dict of the former and with the latter by name. Sequences are written with commas.

    Parameters
    ----------
    target : str
        `MODULE:FUNCTION` of the library.
    rename : mapping, optional
        Parameter to the name of its option.
    skip : tuple of str
        Parameters that are no options.
    """
    names = rename or {}

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        inherited = {k: v for k, v in declared(target).items() if k not in skip}
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, one in inherited.items()
            for annotation, default in [_option(name, one, names.get(name, name))]
        ]

        @functools.wraps(body)
        def command(**given: Any) -> None:
            options = {name: _read(name, inherited[name], given.pop(name)) for name in inherited}
            body(options, **given)

        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*parameters, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        )
        command.__annotations__ = {p.name: p.annotation for p in (*parameters, *own)}
        return command

    return decorate


def _option(name: str, one: Declared, shown: str) -> tuple[Any, Any]:
    flag = f"--{shown.replace('_', '-')}"
    default = one.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    names = (flag, f"--no-{flag[2:]}") if default is True else (flag,)
    option = typer.Option(*names, help=one.help, show_default=default not in (None, "", False))
    required = default is inspect.Parameter.empty
    return Annotated[_type(one.annotation), option], ... if required else default


def _read(name: str, one: Declared, value: Any) -> Any:
    """Turn what was parsed into what the function takes."""
    if isinstance(value, str) and one.annotation.startswith("Sequence[str]"):
        items = [item.strip() for item in value.split(",")]
        if "" in items:
            raise InputError(
                f"--{name.replace('_', '-')} takes names separated by commas, got {value!r}"
            )
        return items
    return value


def _place_for_json(path: Path | None) -> Path | None:
    """Refuse a place that cannot take the file now, not after hours of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--json {path}: expected a file in a folder that exists")
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write what is printed to this file as one JSON object.",
        show_default=False,
        callback=_place_for_json,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="A store, or a folder with one; or s3://BUCKET/PREFIX.",
        show_default="the only store in $SAMTL_CACHE or ./cache",
    ),
]
StoreArgument = Annotated[
    Path | None, typer.Argument(help="A store; the same as --cache.", show_default=False)
]

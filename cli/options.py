"""Options of the verbs, taken from the library's functions: an option is declared and described once, there.

The source of the function is read, not imported, so that `samtl VERB --help` does not wait for torch. What a verb adds
on the command line is described in the docstring of the command itself, in the same way.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import typer.core
import typer.main

from samtl.errors import InputError

_JSON = "Write what is printed to this file as one JSON object."
_NOT_OPTIONS = frozenset({"on_event", "on_row", "on_progress", "should_stop", "params"})
_REQUIRED = inspect.Parameter.empty
# Options that several commands have on the command line only.
_SHARED = {
    "store": "A store.",
    "cache": "A store, a folder with one, or s3://BUCKET/PREFIX; the only store in $SAMTL_CACHE or ./cache by default.",
    "epochs": "Maximum number of passes over the training part.",
    "lr": "Learning rate after the warm-up.",
    "batch_size": "Samples in one step.",
    "patience": "Epochs without a better validation loss before training stops.",
}


@dataclass(frozen=True)
class Declared:
    """A parameter of a library function: its annotation and default as in the source, and its description."""

    annotation: str
    default: Any
    help: str


@functools.cache
def _source(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def declared(target: str, skip: Collection[str] = ()) -> dict[str, Declared]:
    """Read the parameters of a function from its source and its numpydoc docstring.

    Parameters
    ----------
    target : str
        `MODULE:FUNCTION`. Defaults must be literals, or names of constants that are.
    skip : collection of str
        Parameters to leave out.
    """
    module, _, name = target.partition(":")
    functions = (node for node in _source(module).body if isinstance(node, ast.FunctionDef))
    function = next(node for node in functions if node.name == name)
    described = _descriptions(ast.get_docstring(function) or "")[1]
    positional = [*function.args.posonlyargs, *function.args.args]
    required = [None] * (len(positional) - len(function.args.defaults))
    pairs = [
        *zip(positional, [*required, *function.args.defaults], strict=True),
        *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
    ]
    return {
        argument.arg: Declared(
            ast.unparse(argument.annotation) if argument.annotation else "str",
            _REQUIRED if default is None else _value(module, default),
            described.get(argument.arg, ""),
        )
        for argument, default in pairs
        if argument.arg not in _NOT_OPTIONS and argument.arg not in skip
    }


def _descriptions(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a numpydoc docstring into what precedes the parameters, and each parameter's description."""
    text, _, section = docstring.partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    lines = [*section.splitlines(), ""]
    for line, following in itertools.pairwise(lines):
        if following.startswith("---"):
            break
        if line and not line.startswith(" "):
            names = [name.strip(" *") for name in line.partition(" : ")[0].split(",")]
        for name in names if line.startswith(" ") else ():
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return text.strip(), found


def _value(module: str, node: ast.expr) -> Any:
    """Evaluate a default: a literal, or a constant of the module or of one that it imports from."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    for statement in _source(module).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == node.id:
            return _value(module, statement.value)
        imported = statement.names if isinstance(statement, ast.ImportFrom) else []
        if any((alias.asname or alias.name) == node.id for alias in imported):
            return _value(str(statement.module), node)  # type: ignore[attr-defined]
    raise LookupError(f"{module} has no constant {node.id}")


def verb(
    target: str = "",
    *,
    rename: Mapping[str, str] | None = None,
    skip: tuple[str, ...] = (),
    arguments: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that calls a verb of the library; `Verbs` builds its options.

    The command has an option for each parameter of `target`, and one for each parameter of the decorated function
    after the first. The function is called with a dict of the former, and with the latter by name.

    Parameters
    ----------
    target : str
        `MODULE:FUNCTION` of the library.
    rename : mapping, optional
        Parameter to the name of its option.
    skip : tuple of str
        Parameters of `target` that are no options.
    arguments : tuple of str
        Parameters that are positional on the command line.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        text, described = _descriptions(inspect.getdoc(body) or "")

        def build() -> Callable[..., None]:
            library = declared(target, skip) if target else {}
            options = [(n, _type(o.annotation), o.default, o.help) for n, o in library.items()]
            for name, own in list(inspect.signature(body, eval_str=True).parameters.items()):
                about = described.get(name, _SHARED.get(name, ""))
                options.append((name, own.annotation, own.default, about))

            def command(**given: Any) -> None:
                taken = {name: _read(name, one, given.pop(name)) for name, one in library.items()}
                body(*[taken] if target else [], **given)

            parameters = [
                _parameter(n, "" if n in arguments else (rename or {}).get(n, n), *rest)
                for n, *rest in options
                if n != "options"
            ]
            command.__name__, command.__doc__ = body.__name__, text
            command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            return command

        def unbuilt() -> None: ...

        unbuilt.__name__, unbuilt.__doc__ = body.__name__, text
        unbuilt.build = build  # type: ignore[attr-defined]
        return unbuilt

    return decorate


class Verbs(typer.core.TyperGroup):
    """Commands that read the library's sources when they are called: all of them would take a while."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command, the command with its options, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        build = getattr(command and command.callback, "build", None)
        if build is not None:
            alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            alone.command(name)(build())
            command = typer.main.get_command(alone)
        return name, command, rest


def _parameter(name: str, shown: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    """Describe an option to typer; without a shown name it is an argument."""
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    flag = f"--{shown.replace('_', '-')}"
    if default is True:
        flag = f"{flag}/--no-{flag[2:]}"
    show = not isinstance(default, bool) and default not in (None, "", _REQUIRED)
    info: Any = typer.Argument(help=text, show_default=show)
    if name in ("json", "table"):
        text = _JSON if name == "json" else text
        info = typer.Option(flag, help=text, show_default=False, callback=_writable)
    elif shown:
        # No number may be negative.
        least = 0 if {int, float} & {kind, *get_args(kind)} else None
        info = typer.Option(flag, help=text, show_default=show, min=least)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=... if default is _REQUIRED else default,
        annotation=Annotated[kind, info],
    )


def _type(annotation: str) -> Any:
    """Choose the type that typer parses an annotation of the library as."""
    kinds = {kind.strip() for kind in annotation.split("|")}
    others = kinds - {"None"}
    simple: dict[str, Any] = {"bool": bool, "int": int, "float": float}
    found = simple.get(others.pop(), str) if len(others) == 1 else str
    return found | None if "None" in kinds else found


def _read(name: str, one: Declared, value: Any) -> Any:
    """Split what the library takes as a sequence, and the command line with commas."""
    if not (isinstance(value, str) and one.annotation.startswith("Sequence[str]")):
        return value
    items = [item.strip() for item in value.split(",")]
    if items == [""] and not one.default:
        return one.default
    if "" in items:
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option} takes names separated by commas, got {value!r}")
    return items


def _writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a place that cannot take the file now, not after hours of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--{option.name} {path}: expected a file in a folder that exists")
    return path

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
import json as json_format
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import typer.core
import typer.main

from samtl.errors import InputError

_NOT_OPTIONS = frozenset({"on_event", "on_row", "on_progress", "should_stop", "params"})
_REQUIRED = inspect.Parameter.empty
_SAME = re.compile(r"As for `samtl\.(\w+)`[.:;]? ?")
# Options of the command line that several verbs have
_SHARED = {
    "json": "Write what is printed to this file as one JSON object.",
    "store": "A store.",
    "cache": "A store, a folder with one, or s3://BUCKET/PREFIX; the only store in $SAMTL_CACHE or ./cache by default.",
    "epochs": "Maximum number of passes over the training part.",
    "lr": "Learning rate after the warm-up.",
    "batch_size": "Samples in one step.",
    "patience": "Epochs without a better validation loss before training stops.",
}
_targets: dict[str, str] = {}  # of the verbs, by the name of the library's function

#: What a command returns: the JSON values of what it printed, and its exit code.
Outcome = tuple[Mapping[str, Any], int]


@dataclass(frozen=True)
class Option:
    """A parameter of a library's function or of a command."""

    kind: Any  # that typer parses
    default: Any
    help: str
    listed: bool = False  # whether it takes names separated by commas


@functools.cache
def _source(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def declared(target: str, skip: Collection[str] = ()) -> dict[str, Option]:
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
    arguments = function.args
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    found = {}
    for argument, default in zip(reversed(every), [*reversed(defaults), *[None] * len(every)]):  # noqa: B905
        if argument.arg not in _NOT_OPTIONS and argument.arg not in skip:
            annotation = ast.unparse(argument.annotation) if argument.annotation else "str"
            found[argument.arg] = Option(
                _type(annotation),
                _REQUIRED if default is None else _value(module, default),
                _resolved(argument.arg, described.get(argument.arg, "")),
                annotation.startswith("Sequence[str]"),
            )
    return dict(reversed(found.items()))


def _descriptions(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a numpydoc docstring into what precedes the parameters, and each parameter's description."""
    text, _, section = docstring.partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line, following in itertools.pairwise([*section.splitlines(), ""]):
        if following.startswith("---"):
            break
        if line and not line.startswith(" "):
            names = [name.strip(" *") for name in line.partition(" : ")[0].split(",")]
        for name in names if line.startswith(" ") else ():
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return text.strip(), found


def _resolved(name: str, text: str) -> str:
    """Replace "As for `samtl.VERB`" with that verb's description of the parameter."""
    same = _SAME.match(text)
    if same is None or same[1] not in _targets:
        return text
    rest = text[same.end() :]
    return f"{declared(_targets[same[1]])[name].help} {rest[:1].upper()}{rest[1:]}".strip()


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


def _type(annotation: str) -> Any:
    """Choose the type that typer parses an annotation of the library as."""
    kinds = {kind.strip() for kind in annotation.split("|")}
    others = kinds - {"None"}
    simple: dict[str, Any] = {"bool": bool, "int": int, "float": float}
    found = simple.get(others.pop(), str) if len(others) == 1 else str
    return found | None if "None" in kinds else found


def verb(
    target: str = "",
    *,
    rename: Mapping[str, str] | None = None,
    skip: tuple[str, ...] = (),
    arguments: tuple[str, ...] = (),
    params: Mapping[str, type] | None = None,
) -> Callable[[Callable[..., Outcome]], Callable[..., None]]:
    """Make a command of a function that calls a verb of the library; `Verbs` builds its options.

    The command has an option for each parameter of `target`, one for each parameter of the decorated function after
    the first, and `--json`. The function is called with a dict of the first, and with the second by name.

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
    params : mapping, optional
        Options, by type, that become the parameter `params` of `target`.
    """

    def decorate(body: Callable[..., Outcome]) -> Callable[..., None]:
        text, described = _descriptions(inspect.getdoc(body) or "")
        _targets[target.partition(":")[2]] = target

        def build() -> Callable[..., None]:
            library = declared(target, skip) if target else {}
            own = dict(inspect.signature(body, eval_str=True).parameters)
            own.pop("options", None)
            added = {name: (one.annotation, one.default) for name, one in own.items()}
            added |= {name: (kind | None, None) for name, kind in (params or {}).items()}
            added["json"] = (Path | None, None)
            options = library | {
                name: Option(*about, described.get(name) or _SHARED.get(name, ""))
                for name, about in added.items()
            }

            def command(json: Path | None, **given: Any) -> None:
                taken = {name: _read(name, one, given.pop(name)) for name, one in library.items()}
                chosen = {name: given.pop(name) for name in params or {}}
                if params:
                    taken["params"] = {k: v for k, v in chosen.items() if v is not None}
                content, code = body(*[taken] if target else [], **given)
                if json is not None:
                    text = json_format.dumps(content, indent=2, ensure_ascii=False)
                    json.write_text(text + "\n", encoding="utf-8")
                if code:
                    raise typer.Exit(code)

            shown = {name: (rename or {}).get(name, name) for name in options}
            parameters = [
                _parameter(name, "" if name in arguments else shown[name], one)
                for name, one in options.items()
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


def _parameter(name: str, shown: str, option: Option) -> inspect.Parameter:
    """Describe an option to typer; without a shown name it is an argument."""
    default = option.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    flag = f"--{shown.replace('_', '-')}"
    if default is True:
        flag = f"{flag}/--no-{flag[2:]}"
    about: dict[str, Any] = {
        "help": option.help,
        "show_default": not isinstance(default, bool) and default not in (None, "", _REQUIRED),
    }
    if {int, float} & {option.kind, *get_args(option.kind)}:
        about["min"] = 0
    if name in ("json", "table"):
        about["callback"] = _writable
    info: Any = typer.Option(flag, **about) if shown else typer.Argument(**about)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=... if default is _REQUIRED else default,
        annotation=Annotated[option.kind, info],
    )


def _read(name: str, option: Option, value: Any) -> Any:
    """Split what the library takes as a sequence, and the command line with commas."""
    if not (isinstance(value, str) and option.listed):
        return value
    items = [item.strip() for item in value.split(",")]
    if items == [""] and not option.default:
        return option.default
    if "" in items:
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} takes names separated by commas, got {value!r}")
    return items


def _writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a place that cannot take the file now, not after hours of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--{option.name} {path}: expected a file in a folder that exists")
    return path

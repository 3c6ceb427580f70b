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
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import typer.core
import typer.main

from samtl.errors import InputError, UnknownName

_NOT_OPTIONS = {"on_event", "on_row", "on_progress", "should_stop", "params"}
_REQUIRED = inspect.Parameter.empty
_KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": float}
_SETTING = re.compile(r"([^.=\s]+)\.([^.=\s]+)=(.*)", re.DOTALL)
_SAME = re.compile(r"As for `samtl\.(\w+)`[.:;]? ?")
# Options of the command line that several verbs have
_SHARED = {
    "json": "Write what is printed to this file as one JSON object.",
    "store": "A store.",
    "cache": "A store, a folder with one, or s3://BUCKET/PREFIX; the only store in $SAMTL_CACHE or ./cache by default.",
    "epochs": "Maximum number of passes over the training part.",
    "lr": "Learning rate after the warm-up.",
    "batch_size": "Samples in one step.",
    "precision": "Dtype of products in training: auto (the faster one here), float32 or bfloat16.",
    "class_weights": "balanced weights samples inversely to the size of their class.",
    "patience": "Epochs without a better validation loss before training stops.",
}
_targets: dict[str, str] = {}  # of the verbs, by the name of the library's function

#: What a command returns: the JSON values of what it printed, and its exit code.
Outcome = tuple[Mapping[str, Any], int]


@dataclass(frozen=True)
class Option:
    """A parameter of a library's function or of a command."""

    kind: Any  # that typer parses
    default: Any = None
    help: str = ""
    listed: bool = False  # whether it takes names separated by commas


@functools.cache
def _source(module: str) -> ast.Module:
    spec: Any = importlib.util.find_spec(module)
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def declared(target: str, skip: Collection[str] = ()) -> dict[str, Option]:
    """Read the parameters of a function, `MODULE:FUNCTION`, from its source and its numpydoc docstring.

    Defaults must be literals, or names of constants that are.
    """
    module, _, name = target.partition(":")
    functions = [node for node in _source(module).body if isinstance(node, ast.FunctionDef)]
    function = next(node for node in functions if node.name == name)
    described = _descriptions(ast.get_docstring(function) or "")[1]
    every = [*function.args.args, *function.args.kwonlyargs]
    given = [*function.args.defaults, *function.args.kw_defaults]
    defaults = [*[None] * (len(every) - len(given)), *given]
    found = {}
    for argument, default in zip(every, defaults, strict=True):
        if argument.arg not in _NOT_OPTIONS | {*skip}:
            text = ast.unparse(argument.annotation) if argument.annotation else ""
            kinds = [kind for kind in text.split(" | ") if kind != "None"]
            kind = _KINDS.get(kinds[0], str) if len(kinds) == 1 else str
            found[argument.arg] = Option(
                kind | None if text.endswith("None") else kind,
                _REQUIRED if default is None else _value(module, default),
                _resolved(argument.arg, described.get(argument.arg, "")),
                text.startswith("Sequence[str]"),
            )
    return found


def _descriptions(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a numpydoc docstring into what precedes the parameters, and each parameter's description."""
    text, _, section = docstring.partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line, following in itertools.pairwise([*section.splitlines(), ""]):
        if following.startswith("---"):
            break
        if not line:
            names = []  # what follows is for Python only
        elif not line.startswith(" "):
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


def parsed(
    settings: Sequence[str], expected: str = "MODEL.NAME=VALUE, such as vit.epochs=5"
) -> dict[str, dict[str, Any]]:
    """Parse MODEL.NAME=VALUE by model and name; a value is JSON, or else text."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting in settings:
        parts = _SETTING.fullmatch(setting)
        if parts is None:
            raise InputError(f"--set takes {expected}, got {setting!r}")
        model, name, text = parts.groups()
        if name in found[model]:
            raise InputError(f"--set names {model}.{name} twice; leave one out")
        try:
            found[model][name] = json_format.loads(text)
        except ValueError:
            found[model][name] = text
    return dict(found)


def verb(
    target: str = "",
    *,
    rename: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    arguments: Sequence[str] = (),
    params: Mapping[str, type] | None = None,
) -> Callable[[Callable[..., Outcome]], Callable[..., None]]:
    """Make a command of a function that calls a verb of the library; `Verbs` builds its options.

    The parameters of `target`, `MODULE:FUNCTION` of the library, become options, except those in `skip`, and the first
    argument of the decorated function, as a dict. Its other parameters are options of the command line only, as is
    `--json`. `rename` maps parameters to the names of their options, `arguments` are positional on the command line,
    and `params` are options, by type, that become the parameter `params` of `target`.
    """

    def decorate(body: Callable[..., Outcome]) -> Callable[..., None]:
        text, described = _descriptions(inspect.getdoc(body) or "")
        _targets[target.partition(":")[2]] = target

        def build() -> Callable[..., None]:
            library = declared(target, skip) if target else {}
            own = inspect.signature(body, eval_str=True).parameters
            options = library | {name: Option(o.annotation, o.default) for name, o in own.items()}
            options |= {name: Option(kind | None) for name, kind in (params or {}).items()}
            options["json"] = Option(Path | None)
            options.pop("options", None)

            def command(json: Path | None, **given: Any) -> None:
                taken = {name: _read(name, one, given.pop(name)) for name, one in library.items()}
                chosen = {name: given.pop(name) for name in params or {}}
                if params:
                    taken["params"] = {k: v for k, v in chosen.items() if v is not None}
                content, code = body(*[taken] if target else [], **given)
                if json is not None:
                    told = json_format.dumps(content, indent=2, ensure_ascii=False)
                    json.write_text(told + "\n", encoding="utf-8", errors="backslashreplace")
                if code:
                    raise typer.Exit(code)

            parameters = []
            for name, one in options.items():
                shown = "" if name in arguments else (rename or {}).get(name, name)
                about = one.help or described.get(name) or _SHARED.get(name, "")
                parameters.append(_parameter(name, shown, one, about))
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
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise UnknownName("command", args[0], self.commands)
        name, command, rest = super().resolve_command(ctx, args)
        build = getattr(command and command.callback, "build", None)
        if build is not None:
            alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            alone.command(name, cls=_Command)(build())
            command = typer.main.get_command(alone)
        return name, command, rest


class _Command(typer.core.TyperCommand):
    """A verb that lists its options if one is unknown."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class is in click, or in typer's copy of it
            if type(error).__name__ != "NoSuchOption":
                raise
            known = [name for one in self.params for name in one.opts if name.startswith("--")]
            name = getattr(error, "option_name", "")
            raise UnknownName(f"option of samtl {self.name}", name, known) from error


def _parameter(name: str, shown: str, option: Option, text: str) -> inspect.Parameter:
    """Describe an option to typer; without a shown name it is an argument."""
    default = option.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    flag = f"--{shown.replace('_', '-')}"
    info: Any = typer.Option if shown else typer.Argument
    described = info(
        *[f"{flag}/--no-{flag[2:]}" if default is True else flag] if shown else [],
        help=text,
        show_default=default not in (None, "", _REQUIRED, True, False),
        min=0 if {int, float} & {option.kind, *get_args(option.kind)} else None,
        callback=_writable if name in ("json", "table") else None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=... if default is _REQUIRED else default,
        annotation=Annotated[option.kind, described],
    )


def _read(name: str, option: Option, value: Any) -> Any:
    """Split what the library takes as a sequence, and the command line with commas."""
    if not (isinstance(value, str) and option.listed):
        return value
    items = [item.strip() for item in value.split(",")] if value else []
    if "" in items:
        raise InputError(
            f"--{name.replace('_', '-')} takes names separated by commas, not {value!r}"
        )
    return items


def _writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a place that cannot take the file now, not after hours of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--{option.name} {path}: expected a file in a folder that exists")
    return path

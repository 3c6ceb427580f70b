"""The plan of an encoder pass as it is printed: what a dataset was taken for, and what the pass will cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import render

_PARTS = ("train", "validation", "test", "")
_CLASSES, _EXAMPLES = 12, 3  # that are named; --json FILE has all of them


def draw_plan(plan: Any) -> None:
    """Print a plan, on one screen if the dataset is simple."""
    known = plan.understood
    todo = "all of them to do" if plan.pending_rows == plan.rows else f"{plan.pending_rows} to do"
    store = f"{plan.store} ({'is there: only what it lacks is done' if plan.resumes else 'new'})"
    free = "" if plan.bytes_free is None else f", {render.size(plan.bytes_free)} free"
    sizes = ", ".join(f"{tier} {render.size(n)}" for tier, n in plan.bytes_by_tier.items() if n)
    render.facts(
        {
            "dataset": f"{plan.dataset}: {plan.rows} images for {plan.task}, {todo}",
            "read as": "; ".join(known.readings),
            "classes": _classes(known),
            "pixels": _pixels(known),
            "parts": _counts({part: known.parts[part] for part in _PARTS if part in known.parts})
            or "none of its own",
            "groups": f"{known.groups}, which no split divides" if known.groups else "none",
            "images": _images(known),
            "identical": copies_of(plan.copies, plan.rows),
            "left out": "; ".join(
                f"{one} ({', '.join(one.examples[:_EXAMPLES])})" for one in known.left_out
            ),
            "changes": _changes(plan.changes),
            "store": store,
            "encoder": f"{plan.encoder} at {plan.image_size} pixels{_taken(plan)}, weights {plan.weights}",
            "computed": f"in {plan.compute_dtype} on {plan.device}, engine {plan.engine}, batch size "
            f"{plan.batch_size or 'auto'}",
            "speed here": _speeds(plan),
            "chosen": _chosen(plan.by_default),
            "keeps": sizes,
            "disk": f"{render.size(plan.bytes_to_write)} to write{free}",
            "memory": _memory(plan),
            "time": _time(plan),
            "note": plan.note,
        }
    )


def copies_of(copies: Any, rows: int) -> str:
    """Say how many images are identical to others."""
    among = "" if copies.compared >= rows else f" of the {copies.compared} compared"
    if not copies.copies:
        return f"no two{among}" + (", the pass compares all" if among else "")
    other = f", {copies.relabelled} of them with another label" if copies.relabelled else ""
    are = "is a copy of another" if copies.copies == 1 else "are copies of others"
    return f"{copies.copies}{among} {are}{other}; splits keep copies together, unless many groups share them"


def _classes(known: Any) -> str:
    if not known.classes:
        return ""
    unknown = {"no label": known.unlabelled} if known.unlabelled else {}
    return f"{len(known.classes)}: {_counts({**known.classes, **unknown})}"


def _counts(counts: Mapping[str, int]) -> str:
    listed = [f"{name or 'none'} {count}" for name, count in counts.items()]
    return ", ".join(_first(listed, _CLASSES))


def _first(items: list[str], most: int) -> Iterable[str]:
    more = len(items) - most
    return [*items[:most], f"and {more} more"] if more > 0 else items


def _pixels(known: Any) -> str:
    if not known.pixels:
        return ""
    told = list(_first([f"{name} {share:.1%}" for name, share in known.pixels.items()], _CLASSES))
    told += [f"ignored {known.ignored:.1%}"] if known.ignored else []
    empty = f"; {known.empty} without foreground" if known.empty else ""
    return f"{', '.join(told)} in {known.looked_at} masks{empty}"


def _taken(plan: Any) -> str:
    return "" if plan.bands == ("red", "green", "blue") else f", of bands {', '.join(plan.bands)}"


def _images(known: Any) -> str:
    bands = ", ".join(
        f"{name}{f' ({count})' if len(known.bands) > 1 else ''}"
        for name, count in known.bands.items()
    )
    told = f"{bands} in {known.looked_at} that were looked at"
    told += f"; {known.values}" if known.values else ""
    if known.unusable:
        told += f"; {known.unusable} of these cannot be used, such as {known.trouble}"
    return told


def _changes(changes: Any) -> str:
    counts = {
        "new": changes.added,
        "changed": changes.changed,
        "gone or left out": changes.removed,
        "back": changes.returned,
        "with another label": changes.relabelled,
        "in another group or part": changes.regrouped,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return told and f"images: {told}"


def _speeds(plan: Any) -> str:
    from samtl._runtime.probe import LOAD

    ratios = [f"{name} {ratio:.2f} x" for name, ratio in plan.speeds.items() if ratio != 1]
    speeds = f"{plan.compute_dtype} 1 x, {', '.join(ratios)}" if ratios else ""
    better = [name for name, ratio in plan.speeds.items() if ratio > 1]
    if any(name.startswith("int8") for name in better) and plan.engine == "fast":
        speeds += " (--engine int8)"
    if plan.load > LOAD:
        speeds += f"; {plan.load:.1f} cores were busy otherwise, --dtype decides instead"
    return speeds


def _chosen(by_default: Mapping[str, str]) -> str:
    """Name the options that were not given, grouped by what decides instead."""
    reasons: dict[str, list[str]] = {}
    for option, why in by_default.items():
        reasons.setdefault(why, []).append(f"--{option}")
    return "; ".join(f"{', '.join(options)}: {why}" for why, options in reasons.items())


def _memory(plan: Any) -> str:
    on_gpu = f", {render.size(plan.device_memory)} of the GPU" if plan.device_memory else ""
    return f"about {render.size(plan.memory)}{on_gpu}" if plan.memory else ""


def _time(plan: Any) -> str:
    if plan.seconds is None:
        return "unknown: no image could be encoded"
    if not plan.pending_rows:
        return "none"
    rate = plan.pending_rows / plan.seconds
    told = f"about {render.duration(plan.seconds)} ({rate:.3g} images a second, from one batch)"
    if plan.weights_missing:
        told += f"; with random weights, since {plan.weights_missing}: the pass downloads them"
    return told

"""`samtl info`, `verify`, `compact` and `ls`: what stores contain, and whether they are sound."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import samtl
from samtl import registry
from samtl.errors import EXIT_QUARANTINED, InputError, SamtlError, UnknownName

from . import bench, render
from .options import Outcome, verb

LEVELS = {"quick": "sizes", "rows": "every row's checksum", "deep": "every file's sha256"}


def _chosen(store: Path | None, cache: Path | None) -> Path | None:
    if store and cache:
        raise InputError(f"{store} and --cache {cache} both name a store: leave one of them out")
    return store or cache


@verb(arguments=("store",))
def info(store: Path | None = None, cache: Path | None = None, machine: bool = False) -> Outcome:
    """Show what a store contains: rows, classes, arrays, encoder, identity.

    Parameters
    ----------
    machine
        Show what is known of this machine instead: how fast it computes in each dtype, which is measured if it is not
        known yet.
    """
    if machine:
        import torch

        from samtl.encoders.compute import encoder_speeds

        with render.err.status("measuring"):
            encoder_speeds(torch.device("cpu"))
        content = bench.draw_speeds()
        here = content["machine"]
        render.facts({name: here[name] for name in ("processor", "threads", "torch")})
        return content, 0
    from samtl.store.storage import locate

    opened = samtl.open(locate(_chosen(store, cache)))
    summary = opened.summary()
    size = opened.image_size
    per_class = {} if opened.task == "segmentation" else summary.per_class
    render.facts(
        {
            "store": opened.path,
            "dataset": opened.dataset,
            "rows": _rows(summary, len(summary.quarantined)),
            "task": opened.task,
            "classes": _counts(per_class) or ", ".join(opened.classes),
            "groups": f"{len(set(opened.groups))}; no split divides one" if opened.groups else "",
            "shipped split": _counts(Counter(opened.parts)),
            "encoder": f"{opened.encoder}{f' at {size} pixels' * bool(size)}, weights {opened.weights}, "
            f"computed in {opened.identity['compute_dtype']}",
            "fingerprint": opened.fingerprint,
            "snapshot": opened.snapshot,
            "note": opened.note,
        }
    )
    arrays = [
        (a.name, " x ".join(map(str, a.shape)), a.dtype, str(a.rows), render.size(a.bytes))
        for a in summary.arrays
    ]
    render.grid(("array", "shape", "dtype", "rows", "on disk"), arrays, right=(3, 4))
    render.listed(summary.quarantined)
    render.warn_untrained(opened.weights, opened.untrained)
    if summary.missing:
        render.say(f"{summary.missing} rows are missing: run samtl embed as before", "yellow")
    # A store in a bucket cannot be compacted.
    if summary.superseded and isinstance(opened.path, Path):
        render.say("samtl compact frees the space of rows that are not listed", "dim")
    return summary.to_json(), EXIT_QUARANTINED if summary.quarantined else 0


def _rows(found: Any, quarantined: int) -> str:
    text = f"{found.rows}: {found.ok} embedded, {quarantined} quarantined, {found.missing} missing"
    unlisted = f"; {found.superseded} more are not listed, their images are gone or changed"
    return text + unlisted if found.superseded else text


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counted.items())


@verb(arguments=("kind",))
def ls(kind: str | None = None, cache: Path | None = None) -> Outcome:
    """List the datasets, encoders, heads, baselines and stores there are.

    Parameters
    ----------
    kind
        datasets, encoders, heads, baselines or stores; all of them by default.
    cache
        Folder to look for stores in.
    """
    kinds = (*registry.KINDS, "stores")
    if kind is not None and kind not in kinds:
        raise UnknownName("kind of entry", kind, kinds)
    found = {one: _entries(one, cache) for one in ([kind] if kind else kinds)}
    for shown, entries in found.items():
        if kind is None:
            render.say(f"\n{shown}", "bold")
        if entries:
            render.grid(list(entries[0]), [list(entry.values()) for entry in entries])
    return found, 0


def _entries(kind: str, cache: Path | None) -> list[dict[str, str]]:
    from samtl.store.storage import as_place, cache_folder, stores_in

    if kind != "stores":
        return [{"name": name, "what": what} for name, what in registry.names(kind).items()]
    found = []
    for path in map(str, stores_in(as_place(cache) if cache else cache_folder())):
        entry = {"store": path, "rows": "", "tiers": "", "on disk": "", "weights": ""}
        try:
            store = samtl.open(path)
            summary = store.summary()
            entry["rows"] = f"{summary.rows - summary.missing}/{summary.rows}"
            entry["tiers"], entry["weights"] = ",".join(store.tiers), store.weights
            entry["on disk"] = render.size(summary.bytes)
        except (SamtlError, OSError) as error:  # one damaged store must not hide the others
            entry["weights"] = f"cannot be opened: {error}"
        found.append(entry)
    return found


@verb(arguments=("store",))
def compact(store: Path | None = None, cache: Path | None = None) -> Outcome:
    """Write a store anew with only the listed rows. Nothing else may write to it meanwhile."""
    with render.err.status("reading the log") as status:
        done = samtl.compact(
            _chosen(store, cache), lambda n, of: status.update(f"{n} of {of} rows written")
        )
    told = f"every row of {done.store} is listed: nothing to do"
    if done.rewritten:
        sizes = f"{render.size(done.bytes_after)}, {render.size(done.bytes_before)} before"
        told = f"{done.dropped} rows dropped, {done.rows} are in {done.store}: {sizes}"
    render.say(told)
    return done.to_json(), 0


@verb(
    "samtl.embed.verify:verify",
    rename={"repair_it": "repair"},
    skip=("store", "level"),
    arguments=("store",),
)
def verify(
    options: dict[str, Any],
    store: Path | None = None,
    cache: Path | None = None,
    quick: bool = False,
    deep: bool = False,
) -> Outcome:
    """Check a store against its commit log: the checksum of every row, or more, or less.

    Parameters
    ----------
    quick
        Compare sizes and records only; read no row.
    deep
        Compare the sha256 of every file and, with --dataset, every image.
    """
    if quick and deep:
        raise InputError("--quick and --deep exclude each other: choose one")
    options["level"] = "quick" if quick else "deep" if deep else "rows"
    with render.err.status("reading the log") as status:

        def show(what: str, done: int, total: int) -> None:
            count = render.size if what.startswith("bytes") else str
            status.update(f"{what}: {count(done)} of {count(total)}")

        found = samtl.verify(_chosen(store, cache), **options, on_progress=show)
    draw(found)
    return found.to_json(), found.exit_code


def draw(found: samtl.Verification) -> None:
    """Print what was found."""
    checked, images, again = found.checked, found.images, found.recomputed
    added = f"; {found.images_added} of the dataset have no row" if found.images_added else ""
    compared = f"{found.images_compared} compared, {len(images)} differ{added}"
    render.facts(
        {
            "store": found.store,
            "rows": _rows(checked, checked.quarantined),
            "files": f"{checked.files} shards of {checked.blocks} blocks, {render.size(checked.bytes)}; "
            f"{LEVELS[found.level]} compared",
            "images": compared if found.images_compared else "",
            "recomputed": f"{len(again)} of {found.recompute} rows" if found.recompute else "",
        }
    )
    for one in found.findings[: render.LISTED]:
        rows = f", rows {', '.join(map(str, one.damaged_rows))}" if one.damaged_rows else ""
        render.say(f"  {one.what} {one.path}{rows}: {one.told}", "red")
    render.listed(f"{one.what} {one.sample_id} (row {one.row}): {one.told}" for one in images)
    for row in again:
        far = "" if row.within else ", too far"
        distance = f"{row.tier}, relative L2 {row.distance:.1e}{far}"
        render.say(f"  row {row.row} {row.sample_id}: {distance}")
    if checked.leftovers:
        render.say(f"{len(checked.leftovers)} files belong to no record", "dim")
    colours = {0: "green", InputError.exit_code: "red"}
    render.say(_verdict(found), colours.get(found.exit_code, "yellow"))


def _verdict(found: samtl.Verification) -> str:
    """Say in one line how the store is."""
    from samtl.store.verify import LISTS

    checked, damage, repaired = found.checked, found.findings, found.repaired
    if repaired is not None:
        return (
            f"repaired: {repaired.blocks} blocks to embed again (run samtl embed as before), "
            f"{len(repaired.rewritten)} files of metadata rewritten"
        )
    lists = any(one.what in LISTS for one in damage)
    help_with_lists = "Take it from a copy of the store, or embed again under another name"
    short = checked.missing or not checked.begun
    far = not all(row.within for row in found.recomputed)
    verdicts = {
        f"damaged, and not repaired: {found.refused}": found.refused,
        f"damaged: only this file says what the rows are, so --repair cannot help. {help_with_lists}": lists,
        "damaged: --repair sets the damage aside, and samtl embed does it again": damage,
        "damaged: the encoder computes something else for the rows above": far,
        "undamaged, but the dataset differs: run samtl embed to update the store": found.images,
        f"undamaged, and {checked.missing} rows are missing: run samtl embed": short,
        "undamaged; the images of some rows could not be used: see samtl info": checked.quarantined,
        "complete, by the sizes of its files; their content was not read": found.level == "quick",
    }
    return next((text for text, holds in verdicts.items() if holds), "complete and undamaged")

"""`samtl info`, `verify`, `compact` and `ls`: what stores contain, and whether they are sound."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from samtl import registry
from samtl.errors import EXIT_QUARANTINED, InputError, SamtlError, UnknownName

from . import render
from .options import verb

if TYPE_CHECKING:
    from samtl.embed.verify import Verification
    from samtl.store.state import Summary
    from samtl.store.verify import Checked

LEVELS = {"quick": "sizes", "rows": "every row's checksum", "deep": "every file's sha256"}


def _one(store: Path | None, cache: Path | None) -> Path | None:
    if store is not None and cache is not None:
        raise InputError(f"both {store} and --cache {cache} name a store: leave one of them out")
    return store or cache


@verb(arguments=("store",))
def info(store: Path | None = None, cache: Path | None = None, json: Path | None = None) -> None:
    """Show what a store contains: rows, classes, arrays, encoder, identity."""
    from samtl.store.reader import open_store
    from samtl.store.storage import locate

    opened = open_store(locate(_one(store, cache)))
    summary = opened.summary()
    counted = {k: "" if opened.task == "segmentation" else n for k, n in summary.per_class.items()}
    render.facts(
        {
            "store": str(opened.path),
            "dataset": opened.dataset,
            "rows": _rows(summary, len(summary.quarantined)),
            "task": opened.task,
            "classes": _counts(counted),
            "groups": f"{len(set(opened.groups))}; no split divides one" if opened.groups else "",
            "shipped split": _counts(Counter(opened.parts)),
            "encoder": f"{opened.encoder} at {opened.identity['image_size']} pixels, weights {opened.weights}, "
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
    render.quarantined(summary.quarantined)
    if opened.untrained:
        render.warn_untrained(opened.weights)
    if summary.missing:
        tiers = f" with --tiers {','.join(opened.tiers)}" if opened.tiers else ""
        render.say(f"{summary.missing} rows are missing: run samtl embed again{tiers}", "yellow")
    if summary.superseded and isinstance(
        opened.path, Path
    ):  # a store in a bucket cannot be compacted
        render.say("samtl compact frees the space of rows that are not listed", "dim")
    render.write_json(json, summary.to_json())
    if summary.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


def _rows(found: Summary | Checked, quarantined: int) -> str:
    text = f"{found.rows}: {found.ok} embedded, {quarantined} quarantined, {found.missing} missing"
    unlisted = f"; {found.superseded} more are not listed, their images are gone or changed"
    return text + unlisted if found.superseded else text


def _counts(counted: dict[str, Any]) -> str:
    return ", ".join(f"{name} {n}".strip() for name, n in counted.items())


@verb(arguments=("kind",))
def ls(kind: str | None = None, cache: Path | None = None) -> None:
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
    for shown in kinds if kind is None else (kind,):
        if kind is None:
            render.say(f"\n{shown}", "bold")
        if shown == "stores":
            _ls_stores(cache)
        else:
            render.grid(("name", "what"), list(registry.names(shown).items()))


def _ls_stores(cache: Path | None) -> None:
    from samtl.store.reader import open_store
    from samtl.store.storage import as_place, cache_folder, stores_in

    folder = as_place(cache) if cache else cache_folder()
    rows = []
    for path in map(str, stores_in(folder)):
        try:
            store = open_store(path)
        except (SamtlError, OSError) as error:  # one damaged store must not hide the others
            rows.append((path, "", "", "", f"cannot be opened: {error}"))
            continue
        s = store.summary()
        done, tiers = f"{s.rows - s.missing}/{s.rows}", ",".join(store.tiers)
        rows.append((path, done, tiers, render.size(s.bytes), store.weights))
    if rows:
        render.grid(("store", "rows", "tiers", "on disk", "weights"), rows, right=(1, 3))
    else:
        render.say(f"no stores in {folder}; samtl embed makes one")


@verb(arguments=("store",))
def compact(store: Path | None = None, cache: Path | None = None, json: Path | None = None) -> None:
    """Write a store anew with only the listed rows. Nothing else may write to it meanwhile."""
    from samtl.store.maintenance import compact as run

    with render.err.status("reading the log") as status:
        done = run(_one(store, cache), lambda n, of: status.update(f"{n} of {of} rows written"))
    if done.rewritten:
        render.say(
            f"{done.dropped} rows dropped, {done.rows} are in {done.store}: {render.size(done.bytes_after)}, "
            f"{render.size(done.bytes_before)} before"
        )
    else:
        render.say(f"every row of {done.store} is listed: nothing to do")
    render.write_json(json, done.to_json())


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
    json: Path | None = None,
) -> None:
    """Check a store against its commit log: the checksum of every row, or more, or less.

    Parameters
    ----------
    quick
        Compare sizes and records only; read no row.
    deep
        Compare the sha256 of every file and, with --dataset, every image.
    """
    from samtl.embed.verify import verify as run

    if quick and deep:
        raise InputError("--quick and --deep exclude each other: choose one")
    options["level"] = "quick" if quick else "deep" if deep else "rows"
    with render.err.status("reading the log") as status:

        def show(what: str, done: int, total: int) -> None:
            count = render.size if what.startswith("bytes") else str
            status.update(f"{what}: {count(done)} of {count(total)}")

        found = run(_one(store, cache), **options, on_progress=show)
    draw(found)
    render.write_json(json, found.to_json())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def draw(found: Verification) -> None:
    """Print what was found."""
    checked, images, again = found.checked, found.images, found.recomputed
    added = f"; {found.images_added} of the dataset have no row" if found.images_added else ""
    compared = f"{found.images_compared} compared, {len(images)} differ{added}"
    render.facts(
        {
            "store": str(found.store),
            "rows": _rows(checked, checked.quarantined),
            "files": f"{checked.files} shards of {checked.blocks} blocks, {render.size(checked.bytes)}; "
            f"{LEVELS[found.level]} compared",
            "images": compared if found.images_compared else "",
            "recomputed": f"{len(again)} of {found.recompute} rows" if found.recompute else "",
        }
    )
    findings = ((f"{one.what} {one.path}", one.damaged_rows, one.told) for one in found.findings)
    render.listed((f"{where}{_ranges(rows)}: {told}" for where, rows, told in findings), "red")
    render.listed(f"{one.what} {one.sample_id} (row {one.row}): {one.told}" for one in images)
    for row in again:
        far = "" if row.within else ", too far"
        distance = f"relative L2 {row.distance:.1e}{far}"
        render.say(f"  row {row.row} {row.sample_id}: {row.tier}, {distance}")
    if checked.leftovers:
        render.say(f"{len(checked.leftovers)} files belong to no record", "dim")
    render.say(*_verdict(found))


def _ranges(rows: tuple[int, ...]) -> str:
    if len(rows) > 1 and rows == tuple(range(rows[0], rows[-1] + 1)):
        return f", rows {rows[0]} to {rows[-1]}"
    return f", row {', '.join(map(str, rows))}" if rows else ""


def _verdict(found: Verification) -> tuple[str, str]:
    from samtl.store.verify import LISTS

    checked, repaired = found.checked, found.repaired
    if repaired is not None:
        return (
            f"repaired: {repaired.blocks} blocks to embed again (run samtl embed as before), "
            f"{len(repaired.rewritten)} files of metadata rewritten"
        ), "yellow"
    if found.refused:
        return f"damaged, and not repaired: {found.refused}", "red"
    if any(one.what in LISTS for one in found.findings):
        return (
            "damaged: only this file says what the rows are, so --repair cannot help. Take it from a copy of the "
            "store, or embed again under another name"
        ), "red"
    if found.findings:
        return "damaged: --repair sets the damage aside, and samtl embed does it again", "red"
    if not all(row.within for row in found.recomputed):
        return "damaged: the encoder computes something else for the rows above", "red"
    if found.images:
        return "undamaged, but the dataset differs: run samtl embed to update the store", "yellow"
    if checked.missing or not checked.begun:
        return f"undamaged, and {checked.missing} rows are missing: run samtl embed", "yellow"
    if checked.quarantined:
        return "undamaged; the images of some rows could not be used: see samtl info", "yellow"
    if found.level == "quick":
        return "complete, by the sizes of its files; their content was not read", "green"
    return "complete and undamaged", "green"

"""`samtl info`, `verify`, `compact` and `ls`: what stores contain, and whether they are sound."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtl import registry
from samtl.errors import EXIT_QUARANTINED, InputError, SamtlError, UnknownName

from . import render
from .options import Outcome, verb

if TYPE_CHECKING:
    from samtl.embed.verify import Verification
    from samtl.store.state import Summary
    from samtl.store.verify import Checked

LEVELS = {"quick": "sizes", "rows": "every row's checksum", "deep": "every file's sha256"}


def _chosen(store: Path | None, cache: Path | None) -> Path | None:
    if store and cache:
        raise InputError(f"{store} and --cache {cache} both name a store: leave one of them out")
    return store or cache


@verb(arguments=("store",))
def info(store: Path | None = None, cache: Path | None = None) -> Outcome:
    """Show what a store contains: rows, classes, arrays, encoder, identity."""
    from samtl.store.reader import open_store
    from samtl.store.storage import locate

    opened = open_store(locate(_chosen(store, cache)))
    summary = opened.summary()
    masks = opened.task == "segmentation"
    render.facts(
        {
            "store": str(opened.path),
            "dataset": opened.dataset,
            "rows": _rows(summary, len(summary.quarantined)),
            "task": opened.task,
            "classes": ", ".join(opened.classes) if masks else _counts(summary.per_class),
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
    # A store in a bucket cannot be compacted.
    if summary.superseded and isinstance(opened.path, Path):
        render.say("samtl compact frees the space of rows that are not listed", "dim")
    return summary.to_json(), EXIT_QUARANTINED if summary.quarantined else 0


def _rows(found: Summary | Checked, quarantined: int) -> str:
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
    found: dict[str, list[dict[str, str]]] = {}
    for shown in kinds if kind is None else (kind,):
        names = [] if shown == "stores" else registry.names(shown).items()
        found[shown] = [{"name": name, "what": what} for name, what in names]
        if shown == "stores":
            found[shown] = _stores(cache)
        if kind is None:
            render.say(f"\n{shown}", "bold")
        if found[shown]:
            rows = [list(entry.values()) for entry in found[shown]]
            render.grid(list(found[shown][0]), rows, right=(1, 3) if shown == "stores" else ())
        else:
            render.say("none; samtl embed makes one", "dim")
    return found, 0


def _stores(cache: Path | None) -> list[dict[str, str]]:
    from samtl.store.reader import open_store
    from samtl.store.storage import as_place, cache_folder, stores_in

    found = []
    for path in map(str, stores_in(as_place(cache) if cache else cache_folder())):
        entry = {"store": path, "rows": "", "tiers": "", "on disk": ""}
        try:
            store = open_store(path)
            summary = store.summary()
        except (SamtlError, OSError) as error:  # one damaged store must not hide the others
            found.append({**entry, "weights": f"cannot be opened: {error}"})
            continue
        entry["rows"] = f"{summary.rows - summary.missing}/{summary.rows}"
        entry["tiers"], entry["on disk"] = ",".join(store.tiers), render.size(summary.bytes)
        found.append({**entry, "weights": store.weights})
    return found


@verb(arguments=("store",))
def compact(store: Path | None = None, cache: Path | None = None) -> Outcome:
    """Write a store anew with only the listed rows. Nothing else may write to it meanwhile."""
    from samtl.store.maintenance import compact as run

    with render.err.status("reading the log") as status:
        done = run(_chosen(store, cache), lambda n, of: status.update(f"{n} of {of} rows written"))
    if done.rewritten:
        render.say(
            f"{done.dropped} rows dropped, {done.rows} are in {done.store}: {render.size(done.bytes_after)}, "
            f"{render.size(done.bytes_before)} before"
        )
    else:
        render.say(f"every row of {done.store} is listed: nothing to do")
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
    from samtl.embed.verify import verify as run

    if quick and deep:
        raise InputError("--quick and --deep exclude each other: choose one")
    options["level"] = "quick" if quick else "deep" if deep else "rows"
    with render.err.status("reading the log") as status:

        def show(what: str, done: int, total: int) -> None:
            count = render.size if what.startswith("bytes") else str
            status.update(f"{what}: {count(done)} of {count(total)}")

        found = run(_chosen(store, cache), **options, on_progress=show)
    draw(found)
    return found.to_json(), found.exit_code


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
    render.listed(
        (f"{one.what} {one.path}{_ranges(one.damaged_rows)}: {one.told}" for one in found.findings),
        "red",
    )
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
    """Say in one line how the store is, and return its colour."""
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

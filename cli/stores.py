"""`samtl info`, `verify`, `compact` and `ls`: what stores contain, and whether they are sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from samtl import registry
from samtl.errors import EXIT_QUARANTINED, InputError, SamtlError, UnknownName

from . import render
from .options import verb

if TYPE_CHECKING:
    from samtl.embed.verify import Verification
    from samtl.store.reader import Store


@verb(arguments=("store",))
def info(store: Path | None = None, cache: Path | None = None, json: Path | None = None) -> None:
    """Show what a store contains: rows, classes, arrays, encoder, identity."""
    from samtl.store.reader import open_store
    from samtl.store.storage import locate

    opened = open_store(locate(store or cache))
    summary = opened.summary()
    render.facts(
        {
            "store": str(opened.path),
            "dataset": opened.dataset,
            "rows": _rows_in_words(
                summary.rows,
                summary.ok,
                len(summary.quarantined),
                summary.missing,
                summary.superseded,
            ),
            "task": opened.task,
            "classes": _classes(opened, summary.per_class),
            "groups": f"{len(set(opened.groups))}; no split divides one" if opened.groups else "",
            "shipped split": ", ".join(f"{k} {n}" for k, n in Counter(opened.parts).items()),
            "encoder": f"{opened.encoder} at {opened.identity['image_size']} pixels, weights {opened.weights}, "
            f"computed in {opened.identity['compute_dtype']}",
            "fingerprint": opened.fingerprint,
            "snapshot": opened.snapshot,
            "note": opened.note,
        }
    )
    render.grid(
        ("array", "shape", "dtype", "rows", "on disk"),
        [
            (a.name, " x ".join(map(str, a.shape)), a.dtype, str(a.rows), render.size(a.bytes))
            for a in summary.arrays
        ],
        right=(3, 4),
    )
    for bad in summary.quarantined:
        render.say(f"quarantined {bad.sample_id}: {bad.code}: {bad.reason}", "yellow")
    if opened.untrained:
        render.warn_untrained(opened.weights)
    if summary.missing:
        tiers = ",".join(opened.tiers)
        options = f" with --tiers {tiers}" if tiers else ""
        render.say(f"{summary.missing} rows are missing: run samtl embed again{options}", "yellow")
    if summary.superseded:
        render.say(
            f"{summary.superseded} rows are not listed any more, their images are gone or changed: samtl compact frees "
            "their space",
            "dim",
        )
    render.write_json(json, summary.to_json())
    if summary.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


def _rows_in_words(rows: int, ok: int, quarantined: int, missing: int, unlisted: int) -> str:
    text = f"{rows}: {ok} embedded, {quarantined} quarantined, {missing} missing"
    return f"{text}; {unlisted} more are not listed" if unlisted else text


def _classes(store: Store, per_class: Mapping[str, int]) -> str:
    if store.task == "segmentation":
        return ", ".join(per_class)
    return ", ".join(f"{name} {n}" for name, n in per_class.items())


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
            render.say(shown, "bold")
        if shown == "stores":
            _ls_stores(cache)
        else:
            render.grid(("name", "what"), list(registry.names(shown).items()))
        if kind is None:
            render.say("")


def _ls_stores(cache: Path | None) -> None:
    from samtl.store.reader import open_store
    from samtl.store.storage import as_place, cache_folder, stores_in

    folder = as_place(cache) if cache else cache_folder()
    rows = []
    for path in stores_in(folder):
        try:
            store = open_store(path)
        except (SamtlError, OSError) as error:  # one damaged store must not hide the others
            rows.append((str(path), "", "", "", f"cannot be opened: {error}"))
            continue
        s = store.summary()
        done = f"{s.rows - s.missing}/{s.rows}"
        tiers = ",".join(store.tiers)
        rows.append((str(path), done, tiers, render.size(s.bytes), store.weights))
    if rows:
        render.grid(("store", "rows", "tiers", "on disk", "weights"), rows, right=(1, 3))
    else:
        render.say(f"no stores in {folder}; samtl embed makes one")


@verb(arguments=("store",))
def compact(store: Path | None = None, cache: Path | None = None, json: Path | None = None) -> None:
    """Write a store anew with only the listed rows. Nothing else may write to it meanwhile."""
    from samtl.store.maintenance import compact as run

    with render.err.status("reading the log") as status:
        done = run(
            store or cache,
            lambda rows, total: status.update(f"{rows} of {total} rows written"),
        )
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
    level = "quick" if quick else "deep" if deep else "rows"
    with render.err.status("reading the log") as status:
        found = run(
            store or cache,
            level,
            **options,
            on_progress=lambda what, done, total: status.update(_progress(what, done, total)),
        )
    draw(found)
    render.write_json(json, found.to_json())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _progress(what: str, done: int, total: int) -> str:
    if what.startswith("bytes"):
        return f"{render.size(done)} of {render.size(total)} of shards"
    return f"{what}: {done} of {total}"


def draw(found: Verification) -> None:
    """Print what was found."""
    checked = found.checked
    how = {"quick": "sizes", "rows": "every row's checksum", "deep": "every file's sha256"}
    added = f"; {found.images_added} of the dataset have no row" if found.images_added else ""
    render.facts(
        {
            "store": str(found.store),
            "rows": _rows_in_words(
                checked.rows, checked.ok, checked.quarantined, checked.missing, checked.superseded
            ),
            "files": f"{checked.files} shards of {checked.blocks} blocks, {render.size(checked.bytes)}; "
            f"{how[found.level]} compared",
            "images": f"{found.images_compared} compared, {len(found.images)} differ{added}"
            if found.images_compared
            else "",
            "recomputed": f"{len(found.recomputed)} of {found.recompute} rows"
            if found.recompute
            else "",
        }
    )
    render.listed(
        (
            f"{one.what} {one.path} {_ranges(one.damaged_rows)}: {one.told}"
            for one in found.findings
        ),
        "red",
    )
    render.listed(
        f"{image.what} {image.sample_id} (row {image.row}): {image.told}" for image in found.images
    )
    for row in found.recomputed:
        far = "" if row.within else ", too far"
        render.say(
            f"  row {row.row} {row.sample_id}: {row.tier}, relative L2 {row.distance:.1e}{far}"
        )
    if checked.leftovers:
        render.say(f"{len(checked.leftovers)} files belong to no record", "dim")
    render.say(*_verdict(found))


def _ranges(rows: tuple[int, ...]) -> str:
    if len(rows) > 1 and rows == tuple(range(rows[0], rows[-1] + 1)):
        return f"rows {rows[0]} to {rows[-1]}"
    return f"rows {', '.join(map(str, rows))}" if rows else ""


def _verdict(found: Verification) -> tuple[str, str]:
    checked = found.checked
    if found.repaired is not None:
        return (
            f"repaired: {found.repaired.blocks} blocks to embed again (run samtl embed as before), "
            f"{len(found.repaired.rewritten)} files of metadata rewritten"
        ), "yellow"
    if found.refused:
        return f"damaged, and not repaired: {found.refused}", "red"
    if found.findings:
        return f"damaged: {len(found.findings)} findings; {_advice(found)}", "red"
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


def _advice(found: Verification) -> str:
    from samtl.store.verify import LISTS

    if any(one.what in LISTS for one in found.findings):
        return (
            "only this file says what the rows are, so --repair cannot help: take it from a copy of the store, or "
            "embed again under another name"
        )
    return "--repair sets the damage aside, and samtl embed does it again"

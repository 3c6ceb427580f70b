"""`samtl info` and `samtl ls`: what a store holds, and what there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samtl import registry
from samtl.errors import EXIT_QUARANTINED, SamtlError, UnknownName

from . import _render as render
from ._options import Cache, Json, StoreArgument

if TYPE_CHECKING:
    from samtl.store.reader import Store


def info(
    store: StoreArgument = None,
    cache: Cache = None,
    json: Json = None,
) -> None:
    """Show what a store holds: rows, classes, arrays, encoder, identity."""
    from samtl.store.reader import open_store
    from samtl.store.storage import locate

    opened = open_store(locate(store or cache))
    summary = opened.summary()
    render.facts(
        {
            "store": str(opened.path),
            "dataset": opened.dataset,
            "rows": f"{summary.rows}: {summary.ok} embedded, {len(summary.quarantined)} quarantined, "
            f"{summary.missing} missing"
            + (f", and {summary.superseded} superseded" if summary.superseded else ""),
            "task": opened.task,
            "classes": _classes(opened, summary.per_class),
            **_scenes(opened),
            "encoder": f"{opened.encoder} at {opened.identity['image_size']} pixels, weights {opened.weights}, "
            f"computed in {opened.identity['compute_dtype']}",
            "fingerprint": opened.fingerprint,
            "snapshot": opened.snapshot,
            **({"note": opened.note} if opened.note else {}),
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
        render.say(
            f"{summary.missing} rows are missing: run samtl embed again to go on, with --tiers {tiers}"
            if tiers
            else f"{summary.missing} rows are missing: run samtl embed again to go on",
            "yellow",
        )
    if summary.superseded:
        # It does not compact what is in a bucket.
        room = "" if isinstance(opened.path, str) else ": samtl compact makes room"
        render.say(
            f"{summary.superseded} rows do not count any more, their images are gone or changed{room}",
            "dim",
        )
    render.write_json(json, summary.to_json())
    if summary.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


def _classes(store: Store, per_class: Mapping[str, int]) -> str:
    if store.task == "segmentation":
        return ", ".join(per_class)
    return ", ".join(f"{name} {n}" for name, n in per_class.items())


def _scenes(store: Store) -> dict[str, str]:
    """Say what keeps rows together, where anything does."""
    told = {}
    if store.groups:
        told["groups"] = f"{len(set(store.groups))}, which no split tears apart"
    if store.parts:
        counts = Counter(store.parts)
        told["shipped split"] = ", ".join(f"{name} {n}" for name, n in counts.items())
    return told


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="datasets, encoders, heads, baselines or stores; all of them by default.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where to look for stores.", show_default=False)
    ] = None,
) -> None:
    """List the datasets, encoders, heads, baselines and stores there are."""
    kinds = (*registry.KINDS, "stores")
    if kind is not None and kind not in kinds:
        raise UnknownName("kind of thing", kind, kinds)
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
        rows.append(
            (
                str(path),
                f"{s.rows - s.missing}/{s.rows}",
                ",".join(store.tiers),
                render.size(s.bytes),
                store.weights,
            )
        )
    if rows:
        render.grid(("store", "rows", "tiers", "on disk", "weights"), rows, right=(1, 3))
    else:
        render.say(f"no stores in {folder}; samtl embed makes one")

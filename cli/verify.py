"""`samtl verify`: whether a store is what was committed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samtl.errors import InputError

from . import _render as render
from ._options import Cache, Device, Json, Root, StoreArgument

if TYPE_CHECKING:
    from samtl.embed.verify import Verification

LISTED = 20  # findings printed one by one; all of them are in --json


def verify(
    store: StoreArgument = None,
    cache: Cache = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Sizes and records only: reads no row.")
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="The sha256 of every file, too; with --dataset of images, and their classes.",
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Withdraw what is damaged: the next samtl embed redoes exactly that.",
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="What the store was made from, as samtl embed takes it: for --deep and --recompute.",
            show_default=False,
        ),
    ] = None,
    root: Root = None,
    recompute: Annotated[
        int,
        typer.Option(metavar="K", min=0, help="So many random rows go through the encoder again."),
    ] = 0,
    seed: Annotated[int, typer.Option(help="For which rows these are.", min=0)] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="The encoder's weights.", show_default="those that the store names"),
    ] = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Hold a store against its commit log: every row's checksum, or more, or less."""
    from samtl.embed import verify as verifying

    if quick and deep:
        raise InputError("--quick and --deep are two depths: give one of them")
    with render.err.status("reading the log") as status:
        found = verifying.verify(
            store or cache,
            "quick" if quick else "deep" if deep else "rows",
            repair_it=repair,
            dataset=dataset,
            root=root,
            recompute=recompute,
            seed=seed,
            checkpoint=checkpoint,
            device=device,
            on_progress=lambda what, done, all_of: status.update(_progress(what, done, all_of)),
        )
    draw(found)
    render.write_json(json, found.to_json())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _progress(what: str, done: int, all_of: int) -> str:
    if what.startswith("bytes"):
        return f"{render.size(done)} of {render.size(all_of)} of shards"
    return f"{what}: {done} of {all_of}"


def draw(found: Verification) -> None:
    """Print what was found."""
    checked = found.checked
    how = {
        "quick": "sizes compared, no row read",
        "rows": "every row's checksum compared",
        "deep": "every row's checksum and every file's sha256 compared",
    }[found.level]
    render.facts(
        {
            "store": str(found.store),
            "rows": f"{checked.rows}: {checked.ok} embedded, {checked.quarantined} quarantined, "
            f"{checked.missing} missing"
            + (f", and {checked.superseded} superseded" if checked.superseded else ""),
            "files": f"{checked.files} shards of {checked.blocks} blocks, {render.size(checked.bytes)}; {how}",
            **_images(found),
            **_recomputed(found),
        }
    )
    if found.findings:
        render.grid(
            ("what", "file", "rows", "told"),
            [
                (one.what, one.path, _rows(one.damaged_rows), one.told)
                for one in found.findings[:LISTED]
            ],
        )
        _more(len(found.findings))
    for image in found.images[:LISTED]:
        render.say(f"{image.what} {image.sample_id} (row {image.row}): {image.told}", "yellow")
    _more(len(found.images))
    if found.recomputed:
        render.grid(
            ("row", "sample", "relative L2", "tier", ""),
            [
                (
                    str(r.row),
                    r.sample_id,
                    f"{r.distance:.1e}",
                    r.tier,
                    "" if r.within else "too far",
                )
                for r in found.recomputed
            ],
            right=(0, 2),
        )
    if checked.leftovers:
        render.say(
            f"{len(checked.leftovers)} files are left by a pass that was interrupted; the next pass uses or replaces "
            "them",
            "dim",
        )
    render.say(*_verdict(found))


def _images(found: Verification) -> dict[str, str]:
    if not found.images_compared:
        return {}
    added = f"; {found.images_added} of the dataset have no row" if found.images_added else ""
    others = len(found.images) - _moved(found)
    moved = f", {_moved(found)} of another class or part" if _moved(found) else ""
    return {
        "images": f"{found.images_compared} compared, {others} not what they were{moved}{added}"
    }


def _moved(found: Verification) -> int:
    """Count the images that are what they were, and of another class or part."""
    return sum(image.what in ("relabelled", "regrouped") for image in found.images)


def _recomputed(found: Verification) -> dict[str, str]:
    if not found.recompute:
        return {}
    told = f"{len(found.recomputed)} of {found.recompute} rows asked for"
    if found.findings and found.repaired is None:
        told += "; that is for stores without damage"
    elif len(found.recomputed) < found.recompute:
        told += "; no more have an embedding, and an image in the dataset"
    return {"recomputed": told}


def _rows(rows: tuple[int, ...]) -> str:
    if not rows:
        return ""
    if rows == tuple(range(rows[0], rows[-1] + 1)) and len(rows) > 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows))


def _more(count: int) -> None:
    if count > LISTED:
        render.say(f"and {count - LISTED} more; --json FILE lists all", "yellow")


def _verdict(found: Verification) -> tuple[str, str]:
    if found.repaired is not None:
        done = []
        if found.repaired.blocks:
            blocks = _counted(found.repaired.blocks, "block has", "blocks have")
            done.append(f"{blocks} to be embedded again: run samtl embed as before, on this store")
        if found.repaired.rewritten:
            files = _counted(len(found.repaired.rewritten), "file", "files")
            done.append(f"{files} of metadata written again")
        if found.repaired.removed and not found.repaired.blocks:
            done.append(_counted(len(found.repaired.removed), "leftover", "leftovers") + " removed")
        return "repaired: " + "; ".join(done), "yellow"
    if found.findings:
        if found.refused:
            return f"damaged, and not repaired: {found.refused}", "red"
        count = _counted(len(found.findings), "finding", "findings")
        return f"damaged: {count}; {_advice(found)}", "red"
    if not all(row.within for row in found.recomputed):
        return "damaged: the encoder gives something else for rows above", "red"
    if found.images:
        told = []
        if len(found.images) > _moved(found):
            told.append("images are not those that it was made from")
        if _moved(found):
            told.append(
                "classes or parts of images are others by now: run samtl embed, which takes these and leaves "
                "embeddings as they are"
            )
        return f"undamaged, but {'; '.join(told)}", "yellow"
    if not found.checked.begun:
        return "undamaged, and no row is in it yet: run samtl embed to go on", "yellow"
    if found.checked.missing:
        return (
            f"undamaged, and {found.checked.missing} rows are missing: run samtl embed to go on",
            "yellow",
        )
    if found.checked.quarantined:
        return "undamaged; the images of some rows could not be used: see samtl info", "yellow"
    if found.level == "quick":
        return "complete, by the sizes of its files; their content was not looked at", "green"
    return "whole", "green"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _advice(found: Verification) -> str:
    """Say what can be done about damage."""
    from samtl.store.verify import LISTS

    kinds = {one.what for one in found.findings}
    in_the_way = [
        one.path
        for one in found.findings
        if one.what in ("file", "metadata") and Path(found.store, one.path).is_dir()
    ]
    if in_the_way:
        return f"move the folder {in_the_way[0]} elsewhere, then --repair withdraws what is damaged"
    if kinds & {*LISTS}:
        return (
            "what the rows are is known from that file alone, so --repair cannot help: take it from a copy of the "
            "store, or embed anew under another name"
        )
    if kinds == {"metadata"}:
        return "--repair writes it anew"
    return "--repair withdraws it, for samtl embed to redo"

"""`samtl compact`: a store without the rows that no longer count."""

from __future__ import annotations

from . import _render as render
from ._options import Cache, Json, StoreArgument


def compact(
    store: StoreArgument = None,
    cache: Cache = None,
    json: Json = None,
) -> None:
    """Write a store anew without the rows of images that are gone or changed."""
    from samtl.store import maintenance

    with render.err.status("reading the log") as status:
        done = maintenance.compact(
            store or cache,
            lambda rows, all_of: status.update(f"{rows} of {all_of} rows written"),
        )
    if done.rewritten:
        render.say(
            f"{done.dropped} rows dropped, {done.rows} are in {done.store}: {render.size(done.bytes_after)}, "
            f"{render.size(done.bytes_before)} before"
        )
    else:
        render.say(f"every row of {done.store} is where it was made: nothing to do")
    render.write_json(json, done.to_json())

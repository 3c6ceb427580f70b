"""A store without the rows that no longer count."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_changes import content, dataset, fresh
from test_changes import made as made

import samtl
from samtl.errors import (
    DamageError,
    InputError,
    LockedError,
    ResourceError,
)
from samtl.store import compact as compacting
from samtl.store import durable
from samtl.store.compact import compact
from samtl.store.fingerprint import FILE
from samtl.store.verify import check
from samtl.store.writer import StoreWriter, locked

NOW = dataset(22, labels={"i0": 1}, i3=None, i4=44)


@pytest.fixture
def changed(made):
    made(dataset())
    made(NOW)
    return samtl.open("a.zarr").path


def test_what_counts_is_kept_to_the_bit(changed):
    before = content()
    told = []
    done = compact(changed, lambda rows, all_of: told.append((rows, all_of)))
    assert (done.rows, done.dropped) == (21, 2)
    assert done.bytes_after < done.bytes_before
    assert content() == before == fresh(NOW)
    store = samtl.open(changed)
    assert (store.snapshot, len(store), store.summary().superseded) == (done.snapshot, 21, 0)
    assert zarr.open_group(changed, mode="r")["dense"].shape[0] == 21
    found = check(changed, "deep")
    assert (found.findings, found.leftovers, found.rows) == ([], [], 21)
    assert told[-1] == (21, 21)
    assert sorted(p.name for p in changed.parent.iterdir() if p.name.startswith(".")) == []
    # What it was made from is still known, and the next pass finds nothing to do.
    assert store.image_sha256(0)


def test_a_pass_goes_on_with_it(changed, made):
    compact(changed)
    assert made(NOW).encoded == 0
    assert made(dataset(30, i3=None, i4=44)).encoded == 8


def test_rows_come_into_the_order_of_a_store_made_from_nothing(made):
    made(dataset())
    now = dataset(60)
    made(now)
    done = compact("a.zarr")
    assert (done.rows, done.dropped) == (60, 0)
    fresh(now)
    assert samtl.open("a.zarr").sample_ids == samtl.open("fresh.zarr").sample_ids
    assert content() == content("fresh.zarr")


def test_where_the_dataset_never_changed_there_is_nothing_to_do(made):
    made(dataset())
    before = samtl.open("a.zarr").snapshot
    done = compact("a.zarr")
    assert (done.dropped, done.snapshot, done.bytes_before) == (0, before, done.bytes_after)


def test_quarantined_rows_keep_their_reasons(made):
    from dataclasses import replace

    def bad(of):
        return replace(of, read=lambda name: b"no" if name in ("i5", "i18") else of.read(name))

    made(bad(dataset()), tiers=["pooled"])
    made(bad(dataset(i3=None)))
    store = samtl.open("a.zarr")
    before = {(q.sample_id, q.code, q.reason) for q in store.quarantined}
    compact("a.zarr")
    store = samtl.open("a.zarr")
    assert {(q.sample_id, q.code, q.reason) for q in store.quarantined} == before
    assert len(before) == 2
    assert np.isnan(store.read("pooled", [q.row for q in store.quarantined])).all()


def test_an_array_may_lack_a_row_that_another_has(made):
    """As after an image that changed between two passes."""
    made(dataset(), tiers=["pooled"])
    made(dataset(i4=44), check_images=False)
    made(dataset(i4=44, i3=None), check_images=False)
    before = samtl.open("a.zarr")
    names = [n for n, ok in zip(before.sample_ids, before.valid("pooled"), strict=True) if ok]
    compact("a.zarr")
    store = samtl.open("a.zarr")
    assert [n for n, ok in zip(store.sample_ids, store.valid("pooled"), strict=True) if ok] == names
    assert (~store.valid("dense")).sum() == 1


def test_rows_that_are_missing_are_asked_for_first(made):
    made(dataset())
    made(dataset(40, i3=None), should_stop=lambda: True)
    with pytest.raises(InputError, match="run samtl embed with --tiers pooled,grid,dense first"):
        compact("a.zarr")


def test_a_damaged_row_stops_it_and_nothing_is_lost(changed):
    shard = changed / "pooled" / "c.0.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamageError, match="fails its checksum"):
        compact(changed)
    assert samtl.open(changed).summary().superseded == 2
    data[3] ^= 1
    shard.write_bytes(data)
    assert compact(changed).dropped == 2  # over what the first try left


def test_two_at_a_time_are_refused(changed):
    with locked(changed), pytest.raises(LockedError):
        compact(changed)


def test_there_must_be_room_for_both(changed, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(compacting.shutil, "disk_usage", lambda path: usage(1, 1, 1))
    with pytest.raises(ResourceError, match="a second store of"):
        compact(changed)
    assert samtl.open(changed).summary().superseded == 2


@pytest.mark.parametrize(
    "way",
    [
        lambda path, made: samtl.open(path),
        lambda path, made: made(NOW),
        lambda path, made: samtl.verify(path),
        lambda path, made: compact(path),
    ],
    ids=["open", "embed", "verify", "compact"],
)
@pytest.mark.parametrize("at", range(2))
def test_a_process_that_is_killed_while_they_change_places(changed, made, monkeypatch, at, way):
    before = content()

    class Killed(BaseException):
        pass

    def killed(new, place):
        if at:
            place.rename(new.with_name(f"{new.name}-old"))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_folder", killed)
        with pytest.raises(Killed):
            compact(changed)
    assert (changed / FILE).exists() == (at == 0)
    assert samtl.store.find.stores_in(changed.parent) == ([changed] if at == 0 else [])
    way(changed, made)
    assert content() == before
    compact(changed)
    assert samtl.open(changed).summary().superseded == 0
    assert content() == before
    assert not list(changed.parent.glob(".tmp-*"))


def test_where_folders_cannot_change_places_at_once(changed, monkeypatch):
    monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    before = content()
    assert compact(changed).dropped == 2
    assert content() == before
    assert not list(changed.parent.glob(".tmp-*"))


def test_a_disk_that_is_full(changed, monkeypatch):
    before = content()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StoreWriter, "write_block", full)
    with pytest.raises(ResourceError, match=r"a\.zarr gave out: No space .* as it was"):
        compact(changed)
    assert not list(changed.parent.glob(".tmp-*"))
    assert content() == before


def test_a_copy_that_fails_leaves_nothing(changed, monkeypatch):
    monkeypatch.setattr(compacting, "_copy_block", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compact(changed)
    assert not list(changed.parent.glob(".tmp-*"))


def test_the_command_line(run, changed):
    code, output, _ = run("compact", changed, "--json", "done.json")
    assert (code, "2 rows dropped, 21 are in" in output) == (0, True)
    assert json.loads(Path("done.json").read_text())["dropped"] == 2
    code, output, _ = run("compact", "--cache", changed)
    assert (code, "nothing to do" in output) == (0, True)
    shutil.rmtree(changed)
    code, _, errors = run("compact", changed)
    assert (code, "there is no store" in errors) == (2, True)

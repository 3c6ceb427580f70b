"""Anything that may happen to a dataset and its store, in any order; what the store hands out is always true.

`make torture` plays 1,000 games of 200 steps, others each time; here are 200 of 50, the same every time.
"""

import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import stubs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_torture_rot import cut, deleted, emptied, flipped, means_the_same, state

from samtl.datasets import Dataset
from samtl.embed.api import embed
from samtl.errors import (
    InputError,
    LockedError,
    MismatchError,
    SamtlError,
)
from samtl.images.codecs import decode
from samtl.images.transforms import mask_square, resize_longest_side
from samtl.store import durable, verify
from samtl.store.compact import compact
from samtl.store.fingerprint import FILE
from samtl.store.log import place_in_log
from samtl.store.reader import open_store
from samtl.store.repair import repair
from samtl.store.rows import generations, read_rows
from samtl.store.verify import check
from samtl.store.writer import locked

ALL = bool(os.environ.get("SAMTL_TORTURE"))
GAMES, STEPS = (1_000, 200) if ALL else (200, 50)
SIZE, MOST = 32, 60
CLASSES = ("a", "b", "c")
DAMAGES = (flipped, cut, deleted, emptied)
VERSION = cache(importlib.metadata.version)


class Killed(BaseException):
    """The process is gone: whatever it still tries to do to its files does not happen."""


@contextmanager
def killed_at(calls):
    """Let a process make so many changes of names, and none after that."""
    left = [calls]
    names = ("link", "unlink", "rename", "replace", "mkdir", "rmdir")

    def guarded(real):
        def call(*args, **options):
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, guarded(getattr(os, name)))
        with suppress(Killed):
            yield


@cache
def image(name, version):
    """The bytes of an image's file; version 0 of some is none that can be used."""
    if name % 7 == 0 and version == 0:
        return b"no image"
    return stubs.png(1000 * name + version, (8 + name % 3, 9))


@cache
def mask(name, number):
    """Its mask; of some, one that does not fit."""
    if name % 11 == 0 and number == 2:
        return np.zeros((3, 3), np.uint8)
    return np.random.default_rng((name, number + 1)).integers(0, 3, (8 + name % 3, 9), np.uint8)


@cache
def truth(encoder, content):
    """What a row made from these bytes must hold."""
    try:
        pixels = decode(content)
    except Exception:
        return None
    return encoder.encode([resize_longest_side(pixels, SIZE)], ("pooled", "dense"))


def withdrew(name, content):
    """Tell whether it is a record that only took something back: without it, what it took counts again."""
    return name.startswith("log/") and not json.loads(content)["files"]


class Game(RuleBasedStateMachine):
    """The dataset as a model, and the store that follows it."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.encoders = stubs.install(stubs.StubEncoders(SIZE), self.patch.setattr)
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        # Waiting for processes and threads would take most of a game.
        self.patch.setattr(importlib.metadata, "version", VERSION)
        self.patch.setattr(verify, "ahead", lambda do, items, workers, depth: map(do, items))
        self.encoder = self.encoders.Encoder("stub")
        self.folder = Path(tempfile.mkdtemp(prefix="samtl-game-"))
        self.path = self.folder / "a.zarr"
        self.images = {i: (0, i % 3) for i in range(3)}  # name to version and label
        self.seen = {}  # the store's files when they were looked at last

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)

    @property
    def begun(self):
        return (self.path / FILE).exists() and bool(generations(self.path))

    @initialize(masked=st.booleans())
    def begin(self, masked):
        self.masked = masked

    def dataset(self):
        images = dict(self.images)

        def read(sample_id):
            name = int(sample_id.removesuffix(".png"))
            return image(name, images[name][0])

        def read_mask(sample_id):
            name = int(sample_id.removesuffix(".png"))
            return mask(name, images[name][1])

        return Dataset(
            "game",
            CLASSES,
            tuple(f"{name}.png" for name in images),
            tuple(-1 if self.masked else label for _, label in images.values()),
            read,
            read_mask=read_mask if self.masked else None,
        )

    def pass_over(self, **options):
        return embed(
            self.dataset(),
            "stub",
            out=self.path,
            device="cpu",
            dtype="float32",
            tiers=["pooled", "dense"],
            **options,
        )

    # ------------------------------------------------------------------------------- the dataset

    @precondition(lambda self: len(self.images) < MOST)
    @rule(n=st.integers(1, 20))
    def images_come(self, n):
        first = max(self.images, default=-1) + 1
        self.images |= {name: (0, name % 3) for name in range(first, first + n)}

    @precondition(lambda self: len(self.images) > 4)
    @rule(chance=st.randoms(use_true_random=False), share=st.floats(0, 0.4))
    def images_go(self, chance, share):
        for name in chance.sample(sorted(self.images), int(share * len(self.images))):
            del self.images[name]

    @rule(chance=st.randoms(use_true_random=False), version=st.integers(0, 2))
    def images_change(self, chance, version):
        for name in chance.sample(sorted(self.images), 1 + len(self.images) // 5):
            self.images[name] = version, self.images[name][1]

    @rule(chance=st.randoms(use_true_random=False), label=st.integers(-1, 2))
    def labels_change(self, chance, label):
        for name in chance.sample(sorted(self.images), 1 + len(self.images) // 4):
            self.images[name] = self.images[name][0], label

    # --------------------------------------------------------------------------------- the store

    @rule(batch_size=st.integers(1, 20))
    def embed_it(self, batch_size):
        if self.begun:
            have = open_store(self.path).sample_ids
            kept = sum(f"{name}.png" in have for name in self.images)
            if 2 * kept < len(have):
                with pytest.raises(MismatchError):
                    self.pass_over()
                shutil.rmtree(self.path)
        result = self.pass_over(batch_size=batch_size)
        store = open_store(self.path)
        assert result.missing == store.missing == 0
        data = self.dataset()
        assert dict(zip(store.sample_ids, store.labels.tolist(), strict=True)) == dict(
            zip(data.sample_ids, data.labels, strict=True)
        )
        for row, name in enumerate(store.sample_ids):
            assert store.image_sha256(row) == hashlib.sha256(data.read(name)).hexdigest()
        bad = {name for name in data.sample_ids if truth(self.encoder, data.read(name)) is None}
        if self.masked:
            bad |= {name for name in data.sample_ids if data.read_mask(name).shape == (3, 3)}
            there = np.flatnonzero(store.valid("mask"))
            for row, found in zip(there, store.read("mask", there), strict=True):
                name = store.sample_ids[row]
                assert np.array_equal(found, mask_square(data.read_mask(name), SIZE))
        assert {entry.sample_id for entry in store.quarantined} == bad
        found = check(self.path, "deep")
        assert (found.findings, found.leftovers) == ([], [])

    @rule(at=st.integers(0, 4))
    def embed_and_stop(self, at):
        asked = iter(range(10_000))
        try:
            self.pass_over(batch_size=4, should_stop=lambda: next(asked) >= at)
        except MismatchError:
            return

    @rule(calls=st.integers(0, 120))
    def embed_and_be_killed(self, calls):
        try:
            with killed_at(calls):
                self.pass_over(batch_size=8)
        except MismatchError:
            return

    @precondition(lambda self: self.begun)
    @rule()
    def compact_it(self):
        store = open_store(self.path)
        before = dict(zip(store.sample_ids, store.labels, strict=True))
        if store.missing or not store.arrays:
            return
        done = compact(self.path)
        store = open_store(self.path)
        assert dict(zip(store.sample_ids, store.labels, strict=True)) == before
        assert (len(store), store.summary().superseded) == (done.rows, 0)
        if done.dropped:
            assert check(self.path, "deep").findings == []

    @precondition(lambda self: self.begun)
    @rule(calls=st.integers(0, 200), at_once=st.booleans())
    def compact_and_be_killed(self, calls, at_once):
        before = sorted(open_store(self.path).sample_ids)
        with killed_at(calls), pytest.MonkeyPatch.context() as patch:
            if not at_once:
                patch.setattr(durable, "_exchange", lambda one, other: False)
            with suppress(InputError):  # rows are missing
                compact(self.path)
        assert sorted(open_store(self.path).sample_ids) == before

    @precondition(lambda self: self.begun)
    @rule()
    def a_second_writer_is_refused(self):
        before = state(self.path)
        with locked(self.path), pytest.raises((LockedError, MismatchError)):
            self.pass_over()
        assert state(self.path) == before

    @precondition(lambda self: self.begun)
    @rule(seed=st.integers(0, 2**32), damage=st.sampled_from(DAMAGES))
    def something_is_damaged_and_repaired(self, seed, damage):
        before, chance = state(self.path), random.Random(seed)
        whole = check(self.path)
        files = [n for n, content in before.items() if content is not None and n[0] != "."]
        name = chance.choice(sorted(set(files) - set(whole.leftovers)))
        path = self.path / name
        kept = path.read_bytes()
        if not kept:
            return
        damage(path, chance)
        if means_the_same(self.path, before):
            return
        # Where every record was set aside nothing is committed, and a store without its list is one that was begun;
        # a pass may have been killed before there was a log, or before its first record had a name.
        nothing_is = not list((self.path / "log").glob("[!.]*"))
        # Where the list before is there still, a pass was killed that had done nothing else yet: it never was.
        back = any(left.startswith("rows/") and left.endswith(".json") for left in whole.leftovers)
        of_rows = name.startswith("rows/")
        if not path.exists() and ((nothing_is and (name == FILE or of_rows)) or (back and of_rows)):
            path.write_bytes(kept)
            return
        found = check(self.path)
        # Of metadata that a killed pass had not written yet, it is no news that it is not there.
        news = found.findings or found.missing
        assert (
            news or name.endswith("zarr.json") or self.counts_no_more(name) or withdrew(name, kept)
        ), name
        if any(one.what in ("identity", "rows") for one in found.findings):
            path.write_bytes(kept)  # from a copy, as the message says
            return
        with locked(self.path):
            repair(self.path, check(self.path))
        left = check(self.path).findings
        assert [one for one in left if one.what != "file"] == []
        assert not {one.path for one in left} & {one.path for one in found.findings}

    @precondition(lambda self: self.begun)
    @rule(
        seed=st.integers(0, 2**32), damage=st.sampled_from(DAMAGES), batch_size=st.integers(1, 20)
    )
    def something_is_damaged_and_nobody_looks(self, seed, damage, batch_size):
        """A pass over it may do what it can; but what then passes for whole must be true."""
        chance, copy = random.Random(seed), self.folder / "copy.zarr"
        shutil.copytree(self.path, copy)
        # A list or a record as often as any of the many shards.
        place = chance.choice(sorted(p for p in self.path.iterdir() if p.name[0] != "."))
        within = (p for p in place.rglob("*") if p.is_file() and p.name[0] != ".")
        files = [p for p in within if p.stat().st_size] if place.is_dir() else [place]
        for path in files and [chance.choice(sorted(files))]:
            damage(path, chance)
        with suppress(SamtlError):
            self.pass_over(batch_size=batch_size)
        if check(self.path).findings:
            shutil.rmtree(self.path)
            copy.rename(self.path)
        else:
            shutil.rmtree(copy)

    def counts_no_more(self, name):
        """Tell whether it is the record of a block all of whose rows are superseded."""
        place, listed = place_in_log(Path(name).name), read_rows(self.path)
        if place is None or not name.startswith("log/"):
            return False
        return not set(listed.block_rows(place[0])) & set(listed.current)

    @invariant()
    def what_is_handed_out_is_true(self):
        if not self.begun:
            return
        files = (path for path in self.path.rglob("*") if path.is_file())
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
        if now == self.seen:  # the dataset alone has changed
            return
        self.seen = now
        store = open_store(self.path)
        there = np.flatnonzero(store.valid())
        if not store.arrays:
            return
        dense, pooled = (
            store.read(name, there) if name in store.arrays else None
            for name in ("dense", "pooled")
        )
        for position, row in enumerate(there.tolist()):
            name = int(store.sample_ids[row].removesuffix(".png"))
            digest = store.image_sha256(row)
            content = next(
                image(name, v)
                for v in range(3)
                if hashlib.sha256(image(name, v)).hexdigest() == digest
            )
            expected = truth(self.encoder, content)
            assert expected is not None
            if pooled is not None:
                assert np.array_equal(pooled[position], expected["pooled"][0])
            if dense is not None:
                assert np.array_equal(dense[position], expected["dense"][0])
        assert len(set(store.sample_ids)) == len(store)
        assert check(self.path).findings == []


Game.TestCase.settings = settings(
    max_examples=GAMES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=not ALL,
    phases=(Phase.generate,),  # to make a game that fails shorter would take hours
    suppress_health_check=list(HealthCheck),
)
TestGame = pytest.mark.slow(Game.TestCase)

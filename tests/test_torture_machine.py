"""Anything that may happen to a dataset and its store, in any order; what the store hands out is always true.

`make torture` plays 1,000 games of 200 steps, others each time; here are some short ones, the same every time.
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import stubs
from chaos import ALL
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from made import contents, cut, deleted, emptied, flipped, means_the_same

from samtl.datasets import Dataset
from samtl.embed.api import embed
from samtl.errors import DamageError, InputError, MismatchError, SamtlError
from samtl.images.codecs import decode
from samtl.images.transforms import mask_square, resize_longest_side
from samtl.store import verify
from samtl.store.maintenance import compact, repair
from samtl.store.reader import open_store
from samtl.store.storage import open_storage
from samtl.store.verify import LISTS, check

GAMES, STEPS = (1_000, 200) if ALL else (10, 30)
CLASSES, SIZE = ("a", "b", "c"), 32
DAMAGES = (flipped, cut, deleted, emptied)
VERSION = cache(importlib.metadata.version)
SEEDS = st.randoms(use_true_random=False)


class Killed(BaseException):
    """The process is gone: whatever it still tries to do to its files does not happen."""


@contextmanager
def killed_at(calls):
    """Let a process make so many changes of names, and none after that."""
    left = [calls]

    def guarded(real):
        def call(*args, **options):
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "unlink", "rename", "replace", "mkdir", "rmdir"):
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
def images_of(name):
    """Every version, by its sha256."""
    versions = [image(name, version) for version in range(3)]
    return {hashlib.sha256(content).hexdigest(): content for content in versions}


@cache
def mask(name, number):
    """Its mask; of some, one that does not fit."""
    if name % 11 == 0 and number == 2:
        return np.zeros((3, 3), np.uint8)
    return np.random.default_rng((name, number + 1)).integers(0, 3, (8 + name % 3, 9), np.uint8)


@cache
def truth(encoder, content):
    """What a row made from these bytes must hold; None if they are no image."""
    try:
        pixels = decode(content)
    except Exception:
        return None
    return encoder.encode([resize_longest_side(pixels, SIZE)], ("pooled", "dense"))


def labels_of(samples):
    return dict(zip(samples.sample_ids, samples.labels, strict=True))


class Game(RuleBasedStateMachine):
    """The dataset as a model, and the store that follows it."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.encoders = stubs.install(stubs.StubEncoders(SIZE), self.patch.setattr)
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        # Waiting for threads would take most of a game.
        self.patch.setattr(importlib.metadata, "version", VERSION)
        self.patch.setattr(verify, "prefetch", lambda do, items, workers, depth: map(do, items))
        self.encoder = self.encoders.Encoder("stub")
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.path = self.folder / "a.zarr"
        self.images = {i: (0, i % 3) for i in range(3)}  # name to version and label
        self.seen = {}  # the store's files when they were looked at last

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)

    @property
    def begun(self):
        return bool(list(self.path.glob("samples/*.parquet")))

    @initialize(masked=st.booleans())
    def begin(self, masked):
        self.masked = masked

    def dataset(self):
        images = {f"{name}.png": (name, version) for name, (version, _) in self.images.items()}
        labels = [-1 if self.masked else label for _, label in self.images.values()]
        made = Dataset("game", CLASSES, tuple(images), tuple(labels), lambda i: image(*images[i]))
        return replace(made, read_mask=lambda i: mask(*images[i])) if self.masked else made

    def mostly_others(self):
        """Whether most images whose names are in the store have other bytes than any that it was made from."""
        store, now = open_store(self.path), self.dataset()
        made = {name: store.image_sha256(row) for row, name in enumerate(store.sample_ids)}
        made = {name: made[name] for name in now.sample_ids if made.get(name)}
        hashes = [hashlib.sha256(now.read(name)).hexdigest() for name in made]
        return 2 * sum(one not in made.values() for one in hashes) > len(made)

    def pass_over(self, **options):
        options = {"device": "cpu", "dtype": "float32", "tiers": ["pooled", "dense"], **options}
        return embed(self.dataset(), "stub", out=self.path, **options)

    def repaired(self):
        done = repair(open_storage(self.path), check(self.path))
        found = check(self.path)
        assert (found.findings, found.leftovers) == ([], [])
        return done

    # The dataset

    @precondition(lambda self: len(self.images) < 60)
    @rule(n=st.integers(1, 20))
    def images_come(self, n):
        first = max(self.images, default=-1) + 1
        self.images |= {name: (0, name % 3) for name in range(first, first + n)}

    @precondition(lambda self: len(self.images) > 4)
    @rule(chance=SEEDS, share=st.floats(0, 0.4))
    def images_go(self, chance, share):
        for name in chance.sample(sorted(self.images), int(share * len(self.images))):
            del self.images[name]

    @rule(chance=SEEDS, what=st.integers(0, 1), new=st.integers(0, 2))
    def images_or_labels_change(self, chance, what, new):
        for name in chance.sample(sorted(self.images), 1 + len(self.images) // 5):
            version, label = self.images[name]
            self.images[name] = (version, new - 1) if what else (new, label)

    # The store

    @rule(batch_size=st.integers(1, 20))
    def embed_it(self, batch_size):
        if self.begun:
            have = open_store(self.path).sample_ids
            gone = 2 * sum(f"{name}.png" in have for name in self.images) < len(have)
            if gone or self.mostly_others():
                with pytest.raises(MismatchError):
                    self.pass_over()
                shutil.rmtree(self.path)
        try:
            result = self.pass_over(batch_size=batch_size)
        except DamageError:  # a killed pass left shards of images that have changed since
            assert self.repaired().removed
            result = self.pass_over(batch_size=batch_size)
        store, data = open_store(self.path), self.dataset()
        assert result.missing == store.missing == 0
        assert labels_of(store) == labels_of(data)
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
        assert (found.findings, found.missing) == ([], 0)

    @rule(at=st.integers(0, 4), calls=st.one_of(st.none(), st.integers(0, 120)))
    def embed_and_be_stopped_or_killed(self, at, calls):
        asked = iter(range(10_000))
        with suppress(MismatchError, DamageError):
            if calls is None:
                self.pass_over(batch_size=4, should_stop=lambda: next(asked) >= at)
            else:
                with killed_at(calls):
                    self.pass_over(batch_size=8)

    @precondition(lambda self: self.begun)
    @rule(calls=st.one_of(st.none(), st.integers(0, 200)))
    def compact_it(self, calls):
        """To the end, or until it is killed."""
        labels, done = labels_of(open_store(self.path)), None
        with killed_at(10**9 if calls is None else calls), suppress(InputError):  # rows are missing
            done = compact(self.path)
        store = open_store(self.path)
        assert labels_of(store) == labels
        if done:
            assert (len(store), store.summary().superseded) == (done.rows, 0)
        if done and done.dropped:
            assert check(self.path, "deep").findings == []

    @rule(batch_size=st.integers(1, 20), at=st.integers(0, 5))
    def another_writer_comes(self, batch_size, at):
        """While one is at work, another does all of it."""
        turn = [at]

        def other(pixels):
            turn[0] -= 1
            if turn[0] == -1:
                self.pass_over(batch_size=7)

        self.encoders.before_batch = other
        with suppress(MismatchError, DamageError):
            assert self.pass_over(batch_size=batch_size).missing == 0
        self.encoders.before_batch = lambda pixels: None

    @precondition(lambda self: self.begun)
    @rule(chance=SEEDS, damage=st.sampled_from(DAMAGES))
    def something_is_damaged_and_repaired(self, chance, damage):
        before, whole = contents(self.path), check(self.path)
        # Of what a killed pass has not derived yet, it is no news that it is another or missing.
        stale = "zarr.json" in whole.leftovers or not whole.blocks
        names = [
            name for name, content in before.items()
            if content and name not in whole.leftovers and name[0] != "."
            and not (stale and name.endswith(("zarr.json", "/c.0")))
        ]  # fmt: skip
        if not names:
            return
        name = chance.choice(sorted(names))
        path, kept = self.path / name, before[name]
        damage(path, chance)
        # An older table is history; and without its newest, a store is that of before a pass that was killed.
        gone = not path.exists() and name.startswith("samples/")
        if gone or means_the_same(self.path, before):
            path.write_bytes(kept)
            return
        found = check(self.path)
        news = found.findings or found.missing > whole.missing or not found.begun
        assert news or found.leftovers != whole.leftovers, name
        if any(one.what in LISTS for one in found.findings):
            path.write_bytes(kept)  # from a copy, as the message says
        else:
            self.repaired()

    @precondition(lambda self: self.begun)
    @rule(chance=SEEDS, damage=st.sampled_from(DAMAGES), batch_size=st.integers(1, 20))
    def something_is_damaged_and_nobody_looks(self, chance, damage, batch_size):
        """A pass over it may do what it can; but what then passes for whole must be true."""
        copy = Path(shutil.copytree(self.path, self.folder / "copy.zarr"))
        # A list or a record as often as any of the many shards.
        place = chance.choice(sorted(p for p in self.path.iterdir() if p.name[0] != "."))
        within = (p for p in place.rglob("*") if p.is_file() and p.name[0] != ".")
        files = [p for p in within if p.stat().st_size] if place.is_dir() else [place]
        for path in files and [chance.choice(sorted(files))]:
            damage(path, chance)
        with suppress(SamtlError):
            self.pass_over(batch_size=batch_size)
        lost = not self.begun or check(self.path).findings
        shutil.rmtree(self.path if lost else copy)
        if lost:
            copy.rename(self.path)

    @invariant()
    def what_is_handed_out_is_true(self):
        files = (path for path in self.path.rglob("*") if path.is_file())
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
        if not self.begun or now == self.seen:  # the dataset alone has changed
            return
        self.seen, store = now, open_store(self.path)
        if store.arrays:
            there = np.flatnonzero(store.valid())
            read = {n: store.read(n, there) for n in ("dense", "pooled") if n in store.arrays}
            for position, row in enumerate(there.tolist()):
                name = int(store.sample_ids[row].removesuffix(".png"))
                expected = truth(self.encoder, images_of(name)[store.image_sha256(row)])
                assert expected is not None
                for array, rows in read.items():
                    assert np.array_equal(rows[position], expected[array][0])
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

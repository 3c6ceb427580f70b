"""Heads that share their passes: each comes out as if it were alone, and an epoch costs one pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stubs import SeeingEncoders, install
from toys import blobs, stripes

from samtl.embed.api import embed
from samtl.errors import DamageError, InputError, ResourceError
from samtl.experiment import features as feed
from samtl.experiment import fit
from samtl.experiment.clock import Clock
from samtl.experiment.fit import choose
from samtl.experiment.run import RunFolder
from samtl.experiment.sources import Data
from samtl.experiment.trial import Trial
from samtl.heads.grid import STATISTICS_ROWS
from samtl.splits.spec import parse
from samtl.store.reader import Store, open_store
from samtl.sweep.shared_pass import Job, _Pool, fit_together

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = {
    "conv": {"width": 8, "epochs": 3, "lr": 1e-2},
    "vit": {"width": 64, "epochs": 2, "dropout": 0.5},
}


class Watched(Store):
    """A store that counts the bytes of features that are read, and of which some rows cannot be."""

    array = "grid"
    lost: dict[int, Exception]
    infinite: frozenset = frozenset()

    def __init__(self, path):
        super().__init__(open_store(path).state)
        self.bytes, self.lost = 0, {}

    def read(self, array, rows=None):
        found = super().read(array, rows)
        if array == self.array:
            for place, row in enumerate(np.asarray(rows).tolist()):
                if row in self.lost:
                    raise self.lost[row]
                if row in self.infinite:
                    found[place, 3, 0, 0] = np.inf
            self.bytes += found.nbytes
        return found


class Dense(Watched):
    array = "dense"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        for name, data, side, tier in (
            ("classes", stripes(75), 64, "grid"),
            ("masks", blobs(40, classes=2), 64, "dense"),
        ):
            install(SeeingEncoders(side), patch.setattr)
            embed(data, "stub", out=folder / f"{name}.zarr", device="cpu", dtype="float32", tiers=(tier,))  # fmt: skip
    return folder


@pytest.fixture
def store(made):
    return Watched(made / "classes.zarr")


@pytest.fixture
def dense(made):
    return Dense(made / "masks.zarr")


@pytest.fixture
def windows(monkeypatch):
    """Let a window hold one block of rows."""
    monkeypatch.setattr(feed, "WINDOW_BYTES", 1)


class Made:
    """A job, and what becomes of it."""

    def __init__(self, store, name="conv", split="0.2", seed=0, out="runs", **params):
        self.store, self.name, self.seed = store, name, seed
        self.params = PARAMS[name] | params
        self.data = Data(store, store.array, None, None, False)
        self.split = choose(self.data.samples, split, seed, None)
        self.out = out
        self.epochs, self.error, self.scores, self.seconds = [], None, None, None

    def trial(self):
        head = fit.configured("heads", self.name, self.params, self.seed)
        return Trial(self.data, self.name, head, self.split, self.seed, {})

    def make(self):
        return self.trial()

    def done(self, trial, folder, clock):
        assert self.scores is None
        with folder:
            (self.scores,) = trial.held.scores(self.seed).values()
        self.seconds = clock.stop()
        self.keep(trial.model)
        self.chances = trial.held.answers[self.name]

    def failed(self, error):
        assert self.error is None
        assert self.scores is None
        self.error = error

    def keep(self, head):
        self.head, self.weights = head, {n: a.copy() for n, a in head.tensors().items()}

    @property
    def job(self):
        return Job(
            lambda: self.make(),
            lambda: RunFolder(self.out),
            lambda *came: self.done(*came),
            self.failed,
            self.epochs.append,
        )


@pytest.fixture
def make(store, tmp_path):
    return lambda *args, **params: Made(store, *args, out=tmp_path / "runs", **params)


@pytest.fixture
def mask_head(dense, tmp_path):
    return lambda *args, **params: Made(dense, *args, out=tmp_path / "runs", **params)


def run(store, *lanes):
    return fit_together(store, store.array, [[one.job for one in lane] for lane in lanes])


def same(one, other):
    """Whether two came out the same, to the bit."""
    assert one.error is other.error is None
    assert one.weights.keys() == other.weights.keys()
    for name, array in one.weights.items():
        assert array.tobytes() == other.weights[name].tobytes(), name
    assert one.head.curves_ == other.head.curves_
    assert one.epochs == other.epochs
    assert one.head.stopped_ == other.head.stopped_
    assert one.scores == other.scores
    np.testing.assert_array_equal(one.chances, other.chances)


# A head does not notice the others


@pytest.mark.parametrize("task", ["classes", "masks"])
def test_a_head_comes_out_the_same_whoever_shares_its_passes(
    store, dense, make, mask_head, windows, task
):
    shop, of = (store, make) if task == "classes" else (dense, mask_head)

    def three():
        return [of("conv"), of("vit", split="0.4", seed=3), of("conv", "0.6", 1, epochs=2)]

    alone, together, behind = three(), three(), three()
    for one in alone:
        run(shop, [one])
    run(shop, *[[one] for one in reversed(together)])
    run(shop, behind[1:], behind[:1])  # one after the other in a lane
    for one, *others in zip(alone, together, behind, strict=True):
        for other in others:
            same(one, other)


def test_what_torch_is_set_to_neither_matters_nor_changes(store, make):
    one, other = make("vit"), make("vit")
    run(store, [one])
    torch.rand(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        run(store, [other])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    same(one, other)


# Each pass serves all


def test_an_epoch_is_a_pass_however_many_heads_there_are(dense, mask_head, windows):
    row = dense.row("dense", 0).nbytes
    heads = [mask_head("conv", seed=i, split=f"0.{1 + i % 5}") for i in range(9)]
    read = run(dense, *[[head] for head in heads])
    assert {len(head.epochs) for head in heads} == {3}
    learnt = np.unique(np.concatenate([h.split.train[:STATISTICS_ROWS] for h in heads]))
    assert read == dense.bytes <= ((3 + 2) * len(dense) + len(learnt)) * row
    # An epoch more is a pass more, and a head more is none.
    costs = [
        run(dense, *[[mask_head("conv", epochs=epochs)] for _ in range(n)])
        for n, epochs in ((1, 2), (1, 3), (3, 3))
    ]
    assert costs[1] - costs[0] == len(heads[1].split.seen) * row
    assert costs[2] == costs[1]


def test_rows_that_nobody_wants_are_not_read(store, make):
    kept = parse("label:0.25@0.5").text
    one = make("conv", split=kept)
    wanted = np.concatenate([one.split.seen, one.split.test])
    assert len(wanted) < len(store)
    store.lost = {
        row: AssertionError("nobody wants it") for row in set(range(len(store))) - {*wanted}
    }
    run(store, [one])
    assert one.scores


# As good as alone


def test_a_shared_pass_teaches_as_well(store, make, windows):
    one, other = make("conv", width=32, epochs=12), make("vit", epochs=12, dropout=0.1)
    run(store, [one], [other])
    for each in (one, other):
        assert each.scores["accuracy"].value > 0.9
        assert {"fit", "score", "total"} <= each.seconds.keys()
        assert each.head.rate_ > 0
        assert 0 <= each.head.waiting_ <= 1


def alone(one):
    """What the loop of one head comes to on the same parts."""
    trial = one.trial()
    trial.source.fit(trial.model, one.split, Clock())
    return trial.model


SHORT = {
    "batch_size": 6
}  # which 48 training samples are a multiple of: the batches are then the same


@pytest.mark.parametrize(
    ("params", "stopped"),
    [
        ({"epochs": 3}, "epochs"),
        ({"epochs": 40, "patience": 1, "lr": 1e-1}, "patience"),
        ({"epochs": 9, "lr": 1.0, "weight_decay": 10.0}, "diverged at step "),
    ],
)
def test_it_ends_as_alone(store, make, params, stopped):
    one = make("conv", **SHORT, **params)
    assert len(one.split.train) == 48
    run(store, [one], [make("vit", seed=5)])
    expected = alone(one)
    assert one.error is None
    assert one.head.stopped_.startswith(stopped)
    assert one.head.stopped_ == expected.stopped_
    assert (one.head.n_iter_, one.head.best_epoch_) == (expected.n_iter_, expected.best_epoch_)
    assert one.head.n_iter_ < 40
    for name, curve in expected.curves_.items():
        np.testing.assert_allclose(one.head.curves_[name], curve, rtol=0.05, atol=0.02)


# What fails, fails alone


@pytest.mark.parametrize(
    ("what", "part"),
    [("infinite", "test"), ("damaged", "train"), ("damaged", "validation")],
)
def test_rows_that_cannot_be_used_fail_who_needs_them(store, make, windows, what, part, tmp_path):
    heads = [make("conv", split="label:0.5@0.4", seed=seed, epochs=1) for seed in range(4)]
    used = [np.concatenate([h.split.seen, h.split.test]) for h in heads]
    of_one = getattr(heads[0].split, part).tolist()
    row = next(row for row in of_one if not all(row in rows for rows in used))
    if what == "infinite":
        store.infinite = frozenset([row])
    else:
        store.lost = {row: DamageError(f"row {row} fails its checksum")}
    run(store, *[[head] for head in heads])
    touched = {i: row in rows for i, rows in enumerate(used)}
    assert touched[0]
    for i, head in enumerate(heads):
        if touched[i]:
            said = f"{store.sample_ids[row]!r} is not finite" if what == "infinite" else "checksum"
            assert isinstance(head.error, InputError)
            assert said in str(head.error)
        else:
            assert head.error is None
    assert not list((tmp_path / "runs").glob(".*"))
    store.infinite, store.lost = frozenset(), {}
    for i, head in enumerate(heads):
        if not touched[i]:
            expected = make("conv", split="label:0.5@0.4", seed=i, epochs=1)
            run(store, [expected])
            same(head, expected)


def test_what_fails_fails_alone_and_the_next_in_its_lane_begins(store, make, tmp_path):
    def refuse(*came):
        raise ResourceError("the disk is full")

    bad = [make("conv") for _ in range(3)]
    bad[0].make = bad[1].done = refuse
    unmade = bad[2].job
    unmade.folder = refuse
    wrong, after, good = make("conv", lr=1e30), make("vit"), make("vit")
    jobs = [bad[0].job, bad[1].job, unmade, wrong.job, after.job]
    fit_together(store, "grid", [jobs, [good.job]])
    assert {str(one.error) for one in bad} == {"the disk is full"}
    assert "lower the learning rate" in str(wrong.error)
    same(after, good)
    assert not list((tmp_path / "runs").glob(".*"))


def test_breaking_off_leaves_no_folder(store, make, tmp_path):
    quick, slow = make("conv", epochs=1), make("conv", epochs=30)

    class Stop(BaseException):
        pass

    def stop(epoch):
        if epoch.epoch == 2:  # the other is answering meanwhile
            assert list((tmp_path / "runs").glob(".tmp-*"))
            raise Stop

    job = slow.job
    job.on_event = stop
    with pytest.raises(Stop):
        fit_together(store, "grid", [[job], [quick.job]])
    assert not list((tmp_path / "runs").iterdir())


@given(n=st.integers(1, 120), batch=st.integers(1, 40), capacity=st.integers(1, 60), data=st.data())
def test_a_pool_gives_each_row_once_an_epoch(n, batch, capacity, data):
    """Whatever the windows: empty ones, and leftovers from one to the next."""
    pool = _Pool(batch, max(batch, capacity))
    order = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(2):
        cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=12)))
        given = []
        for part in np.split(np.arange(n), cuts):
            rows = torch.from_numpy(part)
            pool.add(rows, rows * 10)
            new = list(pool.batches(order))
            assert all(len(targets) == batch for _, targets in new)
            given += new
        last = list(pool.batches(order, last=True))
        assert all(len(targets) == batch for _, targets in last[:-1])
        given += last
        assert all(torch.equal(10 * x, y) for x, y in given)
        orders.append(torch.cat([x for x, _ in given]).tolist())
        assert sorted(orders[-1]) == list(range(n))
    assert n < 20 or orders[0] != orders[1]

"""Cells in their lanes, what is shared between them, and what happens where one fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stubs import embedded
from toys import stripes

from samtl.errors import DamageError, InputError, ResourceError
from samtl.experiment import sources
from samtl.experiment.fit import choose, fit_head
from samtl.experiment.run import read_run
from samtl.experiment.sources import Data
from samtl.experiment.trial import Parts
from samtl.heads import conv, logreg, mlp
from samtl.splits.spec import parse
from samtl.store.reader import Store, open_store
from samtl.sweep.plan import Cell, Given, Sources, Unit, array_of, configure, lanes_of
from samtl.sweep.worker import CELLS, FLOORS, SPLITS, Worker, why

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = {
    "logreg": {"C": 1.0},
    "mlp": {"hidden": (8,), "epochs": 2},
    "conv": {"width": 4, "epochs": 2},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled", "grid"))


@pytest.fixture
def make(store):
    """Make cells that are called as their runs will be."""
    samples = Data(open_store(store), "pooled", None, None, False).samples

    def cell(number, name="logreg", split="0.3", seed=0, start="", features=None, shop=None):
        parts = Parts(*choose(samples, split, seed, None))
        found = Cell(
            number, "heads", name, str(store), features, parse(split).text, seed, parts, start=start
        )
        return configure(shop or Sources(Given(Path("out"), PARAMS)), found)

    return cell


class Told(list):
    """What a workshop tells, without what heads say on the way."""

    def __call__(self, cell, what, text):
        if what != "event":
            self.append((cell.number, what, text))

    def of(self, what):
        return [number for number, told, _ in self if told == what]


@pytest.fixture
def shop(tmp_path):
    return Worker(Given(tmp_path / "sweep", PARAMS))


def unit(*lanes):
    return Unit(tuple(map(tuple, lanes)))


# Lanes


def test_each_cell_comes_after_its_start(make):
    small, middle = make(0, split="0.7"), make(1, split="0.5")
    large = make(2, split="0.2")
    other = make(3, split="0.7", seed=1)
    middle = replace(middle, start=small.run)
    large = replace(large, start=middle.run)
    aside = replace(make(4, split="0.6"), start=small.run)
    lanes = lanes_of([large, other, aside, middle, small])
    assert lanes == [[small, aside, middle, large], [other]]
    assert [cell.number for cell in unit(*lanes).cells] == [0, 4, 1, 2, 3]
    # What is started from is finished already: each is on its own.
    assert lanes_of([aside, middle]) == [[aside], [middle]]
    assert lanes_of([]) == []


# What comes of a unit


@pytest.mark.parametrize("name", ["logreg", "mlp", "conv"])
def test_a_lane_is_worked_off_and_each_starts_from_the_one_before(shop, make, name, monkeypatch):
    first = make(0, name, "0.5")
    second = make(1, name, "0.3", start=first.run)
    started = []
    kind = {"logreg": logreg, "mlp": mlp, "conv": conv}[name].Head
    start_from = kind.start_from

    def watch(self, other):
        started.append(other)
        start_from(self, other)

    monkeypatch.setattr(kind, "start_from", watch)
    told = Told()
    shop.perform(unit([first, second]), told)
    assert told.of("done") == [0, 1]
    assert told.of("failed") == []
    assert len(started) == 1
    folder = shop.given.out / CELLS
    assert sorted(path.name for path in folder.iterdir()) == sorted([first.run, second.run])
    assert read_run(folder / second.run).warm_start == first.run
    # From the disk it is the same.
    other = Worker(replace(shop.given, out=shop.given.out.with_name("other")))
    for one in (first, second):
        Worker(other.given).perform(unit([one]), told)
    assert len(started) == 2
    for one in (first, second):
        tensors = [s.given.out / CELLS / one.run / "head.safetensors" for s in (shop, other)]
        assert tensors[0].read_bytes() == tensors[1].read_bytes(), one.number


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_what_was_to_start_from_a_cell_that_failed_is_told_of_and_the_rest_goes_on(
    shop, make, name, monkeypatch
):
    first = make(0, name, "0.5")
    second = make(1, name, "0.3", start=first.run)
    beside = make(2, name, "0.4", seed=1)
    started = shop._started

    def fail(cell):
        trial = started(cell)
        if cell.number == 0:
            trial.model.lr = 1e30
        return trial

    monkeypatch.setattr(shop, "_started", fail)
    told = Told()
    shop.perform(unit([first, second], [beside]), told)
    assert (told.of("done"), told.of("failed"), told.of("orphaned")) == ([2], [0], [1])
    (reason,) = [text for _, what, text in told if what == "failed"]
    assert "lower the learning rate" in reason
    assert [path.name for path in (shop.given.out / CELLS).iterdir()] == [beside.run]


@pytest.mark.parametrize("name", ["logreg", "conv"])
def test_what_all_of_a_unit_need_fails_all_of_it_that_is_left(shop, make, name, monkeypatch):
    def gone(path):
        raise ResourceError("the drive was unplugged")

    monkeypatch.setattr(shop, "store", gone)
    told = Told()
    shop.perform(unit([make(0, name)], [make(1, name, seed=1)]), told)
    assert told == [(0, "failed", "the drive was unplugged"), (1, "failed", "the drive was unplugged")]  # fmt: skip


def test_a_defect_fails_a_cell_by_its_name(shop, make, monkeypatch):
    monkeypatch.setattr(logreg.Head, "_fit", lambda self, *args: {}["x"])
    told = Told()
    shop.perform(unit([make(0), make(1, seed=1)]), told)
    assert told == [
        (0, "started", ""), (0, "failed", "KeyError: 'x'"),
        (1, "started", ""), (1, "failed", "KeyError: 'x'"),
    ]  # fmt: skip


def test_a_reason_is_one_line():
    assert why(InputError("a\n  b")) == "a b"
    assert why(ValueError("a\nb")) == "ValueError: a b"


# What is shared


def test_features_are_read_once_for_all_cells(shop, make, monkeypatch):
    reads = []
    read = Store.read

    def watch(self, array, rows=None):
        reads.append(array)
        return read(self, array, rows)

    monkeypatch.setattr(Store, "read", watch)
    for number in range(4):
        shop.perform(unit([make(number, seed=number, shop=shop)]), Told())
    assert reads.count("pooled") == 1
    assert len(list((shop.given.out / CELLS).iterdir())) == 4


def test_a_row_that_is_damaged_is_told_of_by_who_needs_it(shop, make, monkeypatch):
    cell, other = make(0, split="label:0.3@0.5"), make(1, split="label:0.3@0.5", seed=1)
    rows, others = ({*c.parts.split.train, *c.parts.split.test} for c in (cell, other))
    bad = min(rows - others)
    read = Store.read

    def damaged(self, array, rows=None):
        if array == "pooled" and bad in rows:
            raise DamageError(f"row {bad} fails its checksum")
        return read(self, array, rows)

    monkeypatch.setattr(Store, "read", damaged)
    told = Told()
    shop.perform(unit([cell, other]), told)
    assert (told.of("failed"), told.of("done")) == ([0], [1])


def test_splits_and_floors_are_written_once(shop, make, tmp_path, monkeypatch):
    pair = [make(0, "logreg"), make(1, "mlp")]
    for one in pair:
        shop.perform(unit([one]), Told())
    out = shop.given.out
    assert len(list((out / SPLITS).iterdir())) == len(list((out / FLOORS).iterdir())) == 1
    (path,) = (out / FLOORS).iterdir()
    split, inner = pair[0].parts
    store = open_store(pair[0].store)
    samples = Data(store, "pooled", None, None, False).digest
    assert path.name == (
        f"store-{store.fingerprint[:8]}-{samples[:16]}-{split.digest[:16]}-{inner.digest[:8]}-s0.json"
    )
    found = [read_run(out / CELLS / one.run).floor for one in pair]
    alone = fit_head(store, "logreg", 0.3, out=tmp_path / "runs", params=PARAMS["logreg"])
    assert found[0] == found[1] == alone.floor
    assert json.loads(path.read_text())["floor"] == alone.to_json()["floor"]
    # It is taken from there, not fitted again.
    content = json.loads(path.read_text())
    content["floor"]["accuracy"]["value"] = 0.125
    path.write_text(json.dumps(content))
    third = make(2, "mlp", features="mean")
    Worker(shop.given).perform(unit([third]), Told())
    floor = read_run(out / CELLS / third.run).floor
    assert floor["accuracy"].value == 0.125


def test_where_there_is_no_floor_the_reason_is_kept(shop, make, monkeypatch):
    monkeypatch.setattr(sources, "FLOOR_FEATURES", "nothing")
    pair = [make(0), make(1, "mlp")]
    for one in pair:
        shop.perform(unit([one]), Told())
    for one in pair:
        found = read_run(shop.given.out / CELLS / one.run)
        assert found.floor is None
        assert found.floor_missing == "the store has no nothing"


def test_the_array_of_a_head(store):
    opened = open_store(store)
    assert array_of(opened, "conv") == "grid"
    assert array_of(opened, "mlp") == "pooled"

"""The plan of a sweep: which cells there are, what each starts from, and what shares a process."""

from itertools import product
from pathlib import Path

import pytest
from stubs import embedded
from toys import stripes

from samtl.sweep import plan as planning
from samtl.sweep.plan import Given, Sources, plan, units_of

pytestmark = pytest.mark.usefixtures("warm_starts")

NESTED = "0.6,0.4,0.2"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("store"), stripes(75), 64, ("pooled", "grid"))


def planned(store, splits=NESTED, seeds=(0,), heads=("mlp",), baselines=(), **options):
    dataset = options.pop("dataset", stripes(75) if baselines else None)
    given = {"splits": splits, "seeds": seeds, "heads": heads, "baselines": baselines}
    given |= {"room": 10**9, "warm_start": True, "dataset": dataset, "stores": (str(store),)}
    return plan(Sources(Given(Path("out"), **given | options)))


def test_cells_are_heads_by_splits_by_seeds(store):
    data, heads = stripes(75), ("logreg", "mlp", "conv")
    cells = planned(store, seeds=(0, 7), heads=heads, baselines=("floor", "cnn"), dataset=data)
    expected = product((*heads, "floor", "cnn"), NESTED.split(","), (0, 7))
    assert [(cell.name, cell.split, cell.seed) for cell in cells] == [*expected]
    assert [cell.number for cell in cells] == list(range(30))
    assert len({cell.run for cell in cells}) == 30
    assert sorted(data.read.asked) == sorted(data.sample_ids)  # compared once for all
    assert {cell.name for cell in planned(store, heads=None)} == {"logreg", "mlp", "conv", "vit"}


def test_arrays_with_the_same_samples_share_their_splits(store, monkeypatch):
    drawn = []
    select = planning.select
    monkeypatch.setattr(planning, "select", lambda *one: drawn.append(one) or select(*one))
    cells = planned(store, seeds=(0, 7), heads=("logreg", "conv"))
    assert len(drawn) == 6
    assert len({id(cell.rows) for cell in cells}) == 6 == len(cells) / 2


@pytest.mark.parametrize(
    "options",
    [
        {"heads": ("logreg",)},
        {"heads": ("mlp",), "features": ("mean", "std")},
        {"heads": ("conv",)},
        {"heads": (), "baselines": ("cnn",)},
    ],
)
def test_a_cell_starts_from_the_largest_within_it(store, options):
    cells = planned(store, "0.6,0.2,label:0.5@0.2,0.4,label:0.3@0.2", seeds=(0, 1), **options)
    trains = {cell: set(cell.rows.seen.tolist()) for cell in cells}
    starts = 0
    for cell in cells:
        alike = [o for o in cells if (o.seed, o.features) == (cell.seed, cell.features)]
        within = [other for other in alike if trains[other] < trains[cell]]
        if not within:
            assert cell.start == ""
            continue
        starts += 1
        (start,) = [other for other in cells if other.run == cell.start]
        assert start in within
        assert len(trains[start]) == max(len(trains[other]) for other in within)
        assert not trains[start] & set(cell.rows.test)
    assert starts >= 6


@pytest.mark.parametrize(
    "options",
    [
        {"heads": ("vit",)},  # it would lose by a start
        {"heads": (), "baselines": ("floor", "vgg19")},  # they cannot
        {"splits": "kfold:3"},  # folds are not within each other
        {"warm_start": Given(Path()).warm_start},
    ],
)
def test_what_starts_from_nothing(store, options):
    cells = planned(store, **options)
    assert len(cells) >= 3
    assert {cell.start for cell in cells} == {""}


def test_no_warm_start_if_much_of_the_validation_part_was_learnt_from(store, monkeypatch):
    monkeypatch.setattr(planning, "MOST_KNOWN", 0.0)
    assert not any(cell.start for cell in planned(store))
    assert sum(bool(cell.start) for cell in planned(store, heads=("logreg",))) == 2


def test_units_share_what_is_cached_or_streamed_and_begin_with_the_floor(store):
    names = {"heads": ("mlp", "conv"), "baselines": ("floor", "cnn", "vgg19")}
    units = units_of(planned(store, seeds=(0, 1), **names, room=0))
    shapes = [({cell.name for lane in unit for cell in lane}, len(unit)) for unit in units]
    assert shapes[0][0] == {"floor"}
    for name, lanes in (("conv", 2), ("vgg19", 6)):
        assert [n for found, n in shapes if found == {name}] == [lanes]
    assert [n for found, n in shapes if found == {"mlp"}] == [1, 1]
    many = units_of(planned(store, seeds=range(15), heads=("conv",), room=0))
    assert sorted(map(len, many)) == [7, 8]

"""The bench measures every side that there is and tells errors truly; how fast they are is no matter of a test."""

import pytest
import torch

from benchmarks import encoder as bench
from benchmarks.encoder import OTHERS, bench_encoder
from samtl.encoders import sam
from samtl.errors import InputError, UnknownName

SHIPPED = [name for name in OTHERS if name != "transformers-bfloat16"]


SMALL = {"encoder": "tiny", "device": "cpu", "image_size": 64, "rounds": 1}


@pytest.fixture(scope="module")
def rows():
    return bench_encoder(**SMALL, dtypes=("float32", "bfloat16"), others=SHIPPED)


def value(rows, name, vs=""):
    (row,) = [row for row in rows if row.name == name and row.vs == vs]
    return row.value


def test_each_dtype_is_measured_against_each_other_side(rows):
    for dtype in ("float32", "bfloat16"):
        ours = [row for row in rows if row.name == f"tiny/{dtype}/64"]
        assert [row.vs for row in ours] == SHIPPED
        for row in ours:  # of one round, median and ratio agree
            assert row.ratio == pytest.approx(row.value / value(rows, f"tiny/{row.vs}"))
    speed = value(rows, "tiny/float32/64", SHIPPED[0])
    rate = value(rows, "tiny/float32/64/rate")
    assert rate == pytest.approx(speed * bench.operations("tiny", 64) / 1e12)
    share = value(rows, "tiny/float32/64/of-peak")
    assert share == pytest.approx(rate / value(rows, "matmul-peak/float32"))


def test_errors_are_those_of_the_dtype(rows):
    assert value(rows, "tiny/float32/64/error") < 1e-5
    (low,) = [row for row in rows if row.name == "tiny/bfloat16/64/error"]
    assert 1e-3 < low.value < 0.05
    assert low.vs == "shipped-bfloat16"
    assert low.ratio == pytest.approx(low.value / value(rows, "tiny/shipped-bfloat16/error"))


def test_a_side_that_computes_something_else_shows(monkeypatch):
    forward = sam.Encoder.forward
    monkeypatch.setattr(sam.Encoder, "forward", lambda self, x: forward(self, x) * 1.1)
    rows = bench_encoder(**SMALL, dtypes=("float32",), others=())
    assert value(rows, "tiny/float32/64/error") == pytest.approx(0.1, rel=1e-3)
    assert value(rows, "tiny/float32/64") > 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"encoder": "sam_vit_x"}, UnknownName),
        ({"others": ["plain"]}, UnknownName),
        ({"dtypes": ["int4"]}, InputError),
        ({"dtypes": []}, InputError),
        ({"image_size": 100}, InputError),
        ({"device": "cuda:99"}, InputError),
    ],
)
def test_what_there_is_not_is_refused(arguments, error):
    with pytest.raises(error):
        bench_encoder(**SMALL | arguments)


@pytest.mark.parametrize("size", [224, 448])
def test_operations_are_those_of_the_plain_modules(size):
    """Counted by torch on ViT-B's plain modules, whole windows: they also compute queries on padding at the edge."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = sam.build("sam_vit_b", size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    assert bench.operations("sam_vit_b", size) == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_a_side_of_which_not_one_image_fits_is_told_and_left_out(monkeypatch):
    batch = bench._batch

    def scarce(side, *rest):
        return 0 if side.name == "shipped-autocast" else batch(side, *rest)

    monkeypatch.setattr(bench, "_batch", scarce)
    others = ("shipped-float32", "shipped-autocast")
    rows = bench_encoder(**SMALL, dtypes=("float32",), others=others)
    told = [row for row in rows if "autocast" in row.name + row.vs]
    assert [(row.value, row.unit) for row in told] == [(0.0, "img/s, since not one image fits")]
    assert value(rows, "tiny/float32/64", "shipped-float32") > 0

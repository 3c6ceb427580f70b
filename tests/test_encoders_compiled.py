"""By torch.compile: the same sums, each kind of block translated once, and the plain way where it fails."""

import copy
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from samtl.encoders import linear as _linear
from samtl.encoders import sam
from samtl.encoders.blocks import Fast
from samtl.encoders.compiled import Compiled

SIDE = 128


@pytest.fixture(scope="module")
def model():
    return sam.load("tiny", "random:5", SIDE)[0]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The plain layers: oneDNN's can not be translated."""
    monkeypatch.setattr(_linear, "packs", lambda dtype: False)
    torch._dynamo.reset()


def through(engine, x):
    seen = []
    with torch.inference_mode():
        return engine(x, seen.append), seen


def images(n):
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(n))


def test_each_kind_of_block_is_translated_once_for_all_batches(model):
    counter = CompileCounter()
    ours = Compiled(copy.deepcopy(model), (2, 5), backend=counter)
    plain = Fast(copy.deepcopy(model), (2, 5))
    for n in (3, 2, 1, 4):
        out, taps = through(ours, images(n))
        expected, expected_taps = through(plain, images(n))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        for one, other in zip(taps, expected_taps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2  # with windows, and without
    assert ours.note.startswith("torch.compile took ")


def test_one_image_waits_for_no_translation(model):
    counter = CompileCounter()
    ours = Compiled(copy.deepcopy(model), (2, 5), backend=counter)
    through(ours, images(1))
    assert counter.frame_count == 0
    assert ours.note == ""


def failing(times):
    """A compiler that fails after so many translations."""
    done = []

    def backend(graph, inputs):
        done.append(graph)
        if len(done) > times:
            raise RuntimeError("no C++ compiler was found\nand much more")
        return graph.forward

    return backend, done


@pytest.mark.parametrize("times", [0, 1])
def test_where_it_fails_the_plain_way_goes_on(model, times):
    backend, tried = failing(times)
    ours = Compiled(copy.deepcopy(model), (2, 5), backend=backend)
    for n in (2, 3):
        out, _ = through(ours, images(n))
        expected, _ = through(Fast(copy.deepcopy(model), (2, 5)), images(n))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert len(tried) == times + 1  # it is not tried again
    assert "failed" in ours.note
    assert "\n" not in ours.note


def test_lack_of_memory_is_not_the_compilers_fault(model):
    """The encoder takes fewer images at a time then, and goes on by the same way."""
    left = [1]

    def backend(graph, inputs):
        def run(*arguments):
            if left:
                left.pop()
                raise torch.OutOfMemoryError("CUDA out of memory")
            return graph(*arguments)

        return run

    ours = Compiled(copy.deepcopy(model), (2, 5), backend=backend)
    with pytest.raises(torch.OutOfMemoryError):
        through(ours, images(4))
    through(ours, images(2))
    assert ours.note.startswith("torch.compile took ")


def test_defects_are_raised(model):
    ours = Compiled(copy.deepcopy(model), (2, 5), backend="eager")
    with pytest.raises(RuntimeError, match="size"):
        through(ours, images(2)[:, :, :64])
    assert ours.note == ""


def test_threads_share_the_translation(model):
    counter = CompileCounter()
    ours = Compiled(copy.deepcopy(model), (2, 5), backend=counter)
    found = {}

    def work(n):
        found[n] = through(ours, images(n))[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, out in found.items():
        expected, _ = through(Fast(copy.deepcopy(model), (2, 5)), images(n))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert sorted(found) == [2, 3]
    assert counter.frame_count == 2


def test_an_encoder_on_a_cpu_takes_the_fast_way_and_says_so():
    encoder = sam.Encoder("tiny", device="cpu", dtype="float32", image_size=SIDE, engine="compiled")
    assert type(encoder._engine) is Fast
    assert "CPU" in encoder.note


def test_the_encoder_says_what_its_engine_says():
    encoder = sam.Encoder("tiny", device="cpu", dtype="float32", image_size=SIDE)
    assert encoder.note == ""
    encoder._engine.note = "torch.compile took 3 s"
    assert encoder.note == "torch.compile took 3 s"

"""The dtype is chosen by what is measured, whatever flags say; and what was measured is kept for this machine only."""

import json
import os
import time

import pytest
import torch
from stubs import toy_dataset
from torch import nn

from samtl._download import user_folder
from samtl._runtime import probe
from samtl.baselines import vgg19
from samtl.embed.api import plan
from samtl.encoders import compute
from samtl.encoders.compute import resolve_compute
from samtl.encoders.torch_encoder import TorchEncoder
from samtl.errors import InputError
from samtl.heads.training.trainer import InMemory, Recipe, Trainer

CPU = torch.device("cpu")
FLAGS = {"avx512_f": True, "avx512_bf16": True, "avx512_vnni": True}
SLOW, BUSY = 0.1, probe.busy_elsewhere


@pytest.fixture(autouse=True)
def measuring(monkeypatch):
    monkeypatch.delenv(probe.DTYPE)
    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setattr(probe, "busy_elsewhere", lambda: lambda: 0.0)
    flags(monkeypatch, FLAGS)


def flags(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)


def ways(**seconds):
    """Ways of work that take so long, and the list of those that were tried."""
    tried = []

    def prepare(name):
        return lambda: (tried.append(name), time.sleep(seconds[name]))

    return {name: lambda name=name: prepare(name) for name in seconds}, tried


def kept():
    return list(user_folder("", "speed").glob("*.json"))


def planted(monkeypatch, slow):
    """Make one dtype of encoders slow."""
    forward = TorchEncoder.forward

    def slower(self, x):
        time.sleep(4 * SLOW * (self.compute_dtype == slow))
        return forward(self, x[:1])

    monkeypatch.setattr(TorchEncoder, "forward", slower)
    monkeypatch.setattr(compute, "_BLOCK", (64, 1, 1, (0,)))
    monkeypatch.setattr(compute, "_SIZE", 32)


@pytest.mark.parametrize(("slow", "expected"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_pass_avoids_a_dtype_that_is_slow_here(monkeypatch, slow, expected):
    planted(monkeypatch, slow)
    chosen = plan(toy_dataset(3), "tiny", device="cpu")
    assert chosen.compute_dtype == expected
    assert chosen.speeds[expected] == 1
    assert chosen.speeds[slow] < 1
    forced = plan(toy_dataset(3), "tiny", device="cpu", dtype=slow)
    assert (forced.compute_dtype, forced.speeds) == (slow, {})


class Planted(nn.Linear):
    """A layer that takes its time in one dtype."""

    slow = ""

    def forward(self, x):
        time.sleep(SLOW * (torch.is_autocast_enabled("cpu") == (self.slow == "bfloat16")))
        return super().forward(x)


@pytest.mark.parametrize(("slow", "expected"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_training_avoids_a_dtype_that_is_slow_here(monkeypatch, slow, expected):
    monkeypatch.setattr(probe, "TRIVIAL", 0)
    model = Planted(4, 2)
    model.slow = slow
    data = InMemory(torch.randn(32, 4), torch.arange(32) % 2)
    trainer = Trainer(
        model, nn.functional.cross_entropy, 32, Recipe(1, 16, 1e-3, 0.0, 1), 0, lambda epoch: None
    )
    trainer.run(data, data)
    assert trainer.recipe.precision == expected
    assert trainer.samples == 32
    assert model.weight.dtype == torch.float32


def test_a_measurement_changes_neither_weights_nor_random_numbers(monkeypatch):
    monkeypatch.setattr(probe, "TRIVIAL", 0)
    monkeypatch.setattr(probe.Timing, "fastest", lambda timing, among: "float32")

    def trained():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 2)
        )
        data = InMemory(torch.randn(64, 4), torch.arange(64) % 2)
        recipe = Recipe(2, 16, 1e-2, 0.0, 2)
        Trainer(model, nn.functional.cross_entropy, 64, recipe, 0, lambda epoch: None).run(
            data, data
        )
        return model.state_dict()

    measured = trained()
    monkeypatch.setenv(probe.DTYPE, "float32")
    plain = trained()
    assert all(torch.equal(measured[name], plain[name]) for name in plain)


def test_vgg19_avoids_a_dtype_that_is_slow_here(monkeypatch):
    run = vgg19.Baseline._run

    def slower(self, inputs, dtype):
        time.sleep(SLOW * (dtype == torch.bfloat16))
        return run(self, inputs, dtype)

    monkeypatch.setattr(vgg19, "BLOCKS", ((4,), (4,), (4,), (4,), (8,)))
    monkeypatch.setattr(vgg19.Baseline, "_run", slower)
    monkeypatch.setattr(probe, "TRIVIAL", 0)
    baseline = vgg19.Baseline(checkpoint="random:0")
    baseline._load()
    assert baseline._dtype == torch.float32


def test_the_more_exact_way_is_taken_unless_another_gains_something():
    timing = probe.Timing({"float32": 1.0, "bfloat16": 0.95, "float16": 0.5}, 0.0, 0.0)
    assert timing.fastest(["float32", "bfloat16"]) == "float32"
    assert timing.fastest(["float32", "bfloat16", "float16", "int8"]) == "float16"
    assert timing.relative_to("float32") == {"float32": 1, "bfloat16": 1.053, "float16": 2}


def test_what_was_measured_is_kept_for_the_same_work_machine_and_threads(monkeypatch):
    made, tried = ways(a=0.02, b=0.002)
    first = probe.measured("work", made)
    assert first.fastest(made) == "b"
    assert set(tried) == {"a", "b"}
    monkeypatch.setattr(probe, "_known", {})  # another process
    tried.clear()
    assert probe.measured("work", made) == first
    assert probe.known() == {"work": first}
    assert not tried
    probe.measured("other work", made)
    assert tried
    tried.clear()
    flags(monkeypatch, {**FLAGS, "amx_bf16": True})
    assert probe.known() == {}
    probe.measured("work", made)
    assert tried
    assert len(kept()) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", "altered"])
def test_a_damaged_file_is_written_again(monkeypatch, content):
    made, tried = ways(a=0.02, b=0.002)
    probe.measured("work", made)
    (path,) = kept()
    if content == "altered":
        content = path.read_bytes().replace(b'"load":', b'"load":1')
    path.write_bytes(content)
    monkeypatch.setattr(probe, "_known", {})
    tried.clear()
    assert probe.measured("work", made).fastest(made) == "b"
    assert tried
    assert json.loads(path.read_bytes())["timings"].keys() == {"work"}


def test_a_measurement_beside_other_load_is_repeated(monkeypatch):
    made, _ = ways(a=0.02, b=0.002)
    loads = iter([1.5, 0.0])
    monkeypatch.setattr(probe, "busy_elsewhere", lambda: lambda: next(loads))
    assert not probe.measured("work", made).disturbed
    assert next(loads, None) is None


def test_a_measurement_beside_other_load_counts_for_an_hour(monkeypatch):
    made, tried = ways(a=0.02, b=0.002)
    monkeypatch.setattr(probe, "busy_elsewhere", lambda: lambda: 1.5)
    assert probe.measured("work", made).disturbed
    for age, again in ((0, False), (3601, True)):
        now = time.time() + age
        monkeypatch.setattr(probe, "_known", {})
        monkeypatch.setattr(time, "time", lambda now=now: now)
        tried.clear()
        probe.measured("work", made)
        assert bool(tried) == again


def test_without_a_place_to_keep_it_a_process_measures_once(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made, tried = ways(a=0.02, b=0.002)
    first = probe.measured("work", made)
    tried.clear()
    assert probe.measured("work", made) == first
    assert not tried


def test_no_time_is_spent_on_little_work_or_on_a_hopeless_way():
    made, tried = ways(a=0.0, b=0.5)
    assert probe.measured("little", made).fastest(made) == "a"
    assert tried == ["a", "a"]
    made, tried = ways(a=0.002, b=0.3)
    assert probe.measured("hopeless", made).fastest(made) == "a"
    assert tried.count("b") == 2
    assert [work for path in kept() for work in probe.read(path)] == ["hopeless"]


def test_a_way_that_only_begins_slowly_is_not_hopeless():
    made, _ = ways(a=0.03, b=0.002)
    begun = made["b"]()

    def prepare():
        cold = [0.5]
        return lambda: (time.sleep(cold.pop() if cold else 0), begun())

    assert probe.measured("cold", {**made, "b": prepare}).fastest(made) == "b"


@pytest.mark.parametrize(
    ("found", "dtypes", "integers"),
    [
        ({}, "float32", False),
        ({"avx512_f": True, "avx512_bf16": False}, "float32", False),
        ({"avx512_bf16": True, "avx512_vnni": True}, "float32 bfloat16", True),
        ({"amx_bf16": True, "amx_int8": True, "avx512_fp16": True}, "float32 bfloat16 float16", True),
        ({"architecture": "aarch64", "bf16": True, "fp16_arith": True, "i8mm": True}, "float32 bfloat16 float16", True),
    ],
)  # fmt: skip
def test_emulated_dtypes_are_not_tried(monkeypatch, found, dtypes, integers):
    flags(monkeypatch, found)
    assert probe.possible_dtypes(CPU) == tuple(dtypes.split())
    assert probe.has_int8() is integers
    assert probe.possible_dtypes(torch.device("mps")) == ("float32",)


def test_a_gpu_computes_in_bfloat16_if_it_has_it(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **how: native)
        assert resolve_compute("auto", "fast", torch.device("cuda")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in older versions
    assert probe.possible_dtypes(CPU) == ("float32",)


def test_the_environment_says_what_auto_is(monkeypatch):
    monkeypatch.setenv(probe.DTYPE, "bfloat16")
    for device in (CPU, torch.device("mps"), torch.device("cuda")):
        assert resolve_compute("auto", "fast", device) == "bfloat16"
    assert resolve_compute("float32", "fast", CPU) == "float32"
    assert probe.fastest_dtype("work", lambda name: lambda: None) == "bfloat16"
    monkeypatch.setenv(probe.DTYPE, "float16")
    for ask in (
        lambda: resolve_compute("auto", "fast", CPU),
        lambda: probe.fastest_dtype("", None),
    ):
        with pytest.raises(InputError, match="must be float32 or bfloat16, got 'float16'"):
            ask()
    assert not kept()


def test_names_of_dtypes():
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_compute(name, "fast", CPU) == name
    for name in ("float32", "bfloat16"):
        assert resolve_compute(name, "int8", CPU) == f"int8+{name}"
        assert resolve_compute(f"int8+{name}", "fast", CPU) == f"int8+{name}"
    with pytest.raises(InputError, match="--engine int8 needs --dtype auto"):
        resolve_compute("float16", "int8", CPU)
    for name in ("fp16", "int8", "int8+fp16"):
        with pytest.raises(InputError, match="--dtype must be auto, float32"):
            resolve_compute(name, "fast", CPU)


def test_load_is_what_other_processes_do(monkeypatch):
    monkeypatch.setattr(probe, "busy_elsewhere", BUSY)
    ticks = os.sysconf("SC_CLK_TCK")
    busy, own = iter([100 * ticks, 130 * ticks]), iter([(1, 1, 1, 1, 0), (9, 1, 3, 1, 0)])
    clock = iter([50.0, 60.0])
    monkeypatch.setattr(probe, "_busy", lambda: next(busy))
    monkeypatch.setattr(os, "times", lambda: next(own))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    others = probe.busy_elsewhere()
    assert others() == pytest.approx((30 - 10) / 10, abs=0.01)

"""What an encoder computes in: a dtype, on a CPU also 8-bit integers, chosen by what this machine does fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from samtl._runtime import probe
from samtl._runtime.probe import Timing, Work
from samtl.encoders.base import Weights
from samtl.encoders.fast.attention import added
from samtl.encoders.fast.engines import forward_pass
from samtl.encoders.torch_encoder import DTYPES, INT8, Forward, TorchEncoder, encoder_dtype
from samtl.errors import InputError

_HOPELESS = 20  # times as long as in float32
# A block of ViT-B on fewer tokens, and attention of some heads over more tokens than are handled in one go: as in ViT-B
# at 1024 pixels, most of the work is in linear layers, and a fifth in such attention.
_BLOCK, _SIZE = (768, 1, 12, (0,)), 320
_SEEN, _SEEING = 33, 3  # tokens along a side, heads


def resolve_compute(dtype: str, engine: str, device: torch.device) -> str:
    """Return the compute dtype that an option and an engine stand for, such as `bfloat16` or `int8+float32`.

    `auto` is what this machine computes a small encoder in fastest, on a GPU bfloat16 if it has that. A compute dtype
    stands for itself. Raises InputError for another name; for 8-bit products on another device than a CPU, or asked for
    where the processor has no instructions for them; and for such products beside float16, whose range is too small.
    """
    begun = dtype.startswith(INT8)  # a store, which any CPU can go on with
    integers, dtype = begun or engine == "int8", dtype.removeprefix(INT8)
    if integers and device.type != "cpu":
        raise InputError(f"8-bit products are for CPUs, not for {device}: add --device cpu")
    if integers and not begun and not probe.has_int8():
        raise InputError(
            "--engine int8 needs a processor with 8-bit products (VNNI, AMX, or dot products on ARM), and this one has "
            "none: use --engine fast"
        )
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    if integers and dtype == "float16":
        raise InputError(
            "--engine int8 needs --dtype auto, float32 or bfloat16 for the rest, got float16"
        )
    prefix, possible = INT8 if integers else "", probe.possible_dtypes(device)
    if dtype != "auto":
        return prefix + dtype
    if told := probe.told_dtype():
        return prefix + told
    if speeds := encoder_speeds(device):
        return speeds.fastest(prefix + name for name in possible)
    return "bfloat16" if "bfloat16" in possible else "float32"


def encoder_speeds(device: torch.device) -> Timing | None:
    """Return how long a small encoder takes in each compute dtype that a CPU has, with an image on each core.

    None for another device, and if the environment says what to compute in.
    """
    if device.type != "cpu" or probe.told_dtype():
        return None
    names = [name for name in probe.possible_dtypes(device) if _multiplies(DTYPES[name])]
    names += [INT8 + name for name in names if name != "float16" and probe.has_int8()]
    return probe.measured("encoder", {name: partial(small_encoder, name) for name in names})


def small_encoder(compute_dtype: str) -> Work:
    """Build a small untrained encoder; return a call that encodes an image on each core."""
    from samtl.encoders import sam  # which imports this module

    variant = sam.Variant(*_BLOCK)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        pixels = torch.randn(torch.get_num_threads(), 3, _SIZE, _SIZE)
        model = sam.network(variant, _SIZE).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        tokens = torch.randn(4, 1, _SEEING, _SEEN**2, variant.width // variant.heads)
    engine = "int8" if compute_dtype.startswith(INT8) else "fast"

    def forward(model: nn.Module) -> Forward:
        run = forward_pass(engine, model, variant.taps)
        q, k, v, bias = tokens.to(encoder_dtype(compute_dtype))

        def both(x: Tensor, tap: Callable[[Tensor], None]) -> Tensor:
            added(q, k, v, bias[..., :_SEEN], bias[..., :_SEEN])
            return run(x, tap)

        return both

    spec, weights = sam.spec("tiny", _SIZE), Weights("untrained", True, "")
    encoder = TorchEncoder(spec, weights, model, forward, torch.device("cpu"), compute_dtype)
    return partial(encoder.forward, pixels.to(encoder.dtype))


@cache
@torch.inference_mode()
def _multiplies(dtype: torch.dtype) -> bool:
    """Return whether a dtype has products of its own: without them torch may take a thousand times as long."""

    def seconds(x: Tensor) -> float:
        x @ x
        began = time.perf_counter()
        x @ x
        return time.perf_counter() - began

    x = torch.ones(192, 192)
    return dtype == x.dtype or seconds(x.to(dtype)) < _HOPELESS * seconds(x)

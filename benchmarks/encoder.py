"""Speed, memory and numerical error of an encoder, against `segment_anything` as shipped and against transformers.

Every side gets the same normalised pixels on its device and returns the neck's output. On a CPU the other sides get one
image at a time and all cores, as in a loop over `SamPredictor`; samtl is measured that way, and with a batch of one
image for each core, as in an encoder pass. On a GPU every side gets the same batch, or the largest that fits.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paired import Row, against, alone, alternating
from samtl._runtime import out_of_memory, peak_memory, probe
from samtl.encoders import sam
from samtl.encoders.compute import resolve_compute
from samtl.encoders.device import resolve_device
from samtl.encoders.torch_encoder import DTYPES, INT8
from samtl.encoders.weights.hub import PREFIX
from samtl.errors import InputError, UnknownName
from samtl.images.transforms import PATCH

SHIPPED, TRANSFORMERS = "shipped-", "transformers-bfloat16"
OTHERS = ("shipped-float32", "shipped-autocast", "shipped-bfloat16", "transformers-bfloat16")
ONE = "/one-image"
GPU_BATCH, SECONDS = 8, 0.3
SIDE_OF_PRODUCT = {"cpu": 2048, "cuda": 8192, "mps": 4096}

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Side:
    """One way to encode.

    Attributes
    ----------
    name : str
    dtype : torch.dtype
        Of its input.
    run : callable
        Maps (batch, 3, size, size) to (batch, 256, side, side).
    """

    name: str
    dtype: torch.dtype
    run: Run


def bench_encoder(
    encoder: str = "sam_vit_b",
    checkpoint: str = "random:0",
    device: str = "auto",
    dtypes: Sequence[str] = ("auto", "float32", "int8"),
    image_size: int = 1024,
    batch_size: int | None = None,
    rounds: int = 5,
    others: Sequence[str] = OTHERS,
    on_row: Callable[[Row], None] | None = None,
    on_event: Callable[[str], None] | None = None,
) -> list[Row]:
    """Measure an encoder, alternating with other implementations.

    Parameters
    ----------
    encoder : str
        SAM's, or `hf:NAME`, which is measured beside a plain loop over the same network.
    checkpoint : str
        Weights, as for embed; the speed does not depend on them.
    device : str
        One device: auto, cpu, cuda, cuda:N or mps.
    dtypes : sequence of str
        Dtypes that samtl computes in; `int8` stands for 8-bit products, if the processor has them.
    image_size : int
        Side of the input in pixels. Other sizes than 1024 leave out transformers, which does not resample positions.
    batch_size : int, optional
        Images in a batch, for every side; by default one for each core on a CPU, and 8 on a GPU.
    rounds : int
        Rounds of each pair; figures are medians.
    others : sequence of {"shipped-float32", "shipped-autocast", "shipped-bfloat16", "transformers-bfloat16"}
        Implementations to measure against; transformers is left out if it is not installed.
    on_row, on_event : callable, optional
        Called with each figure, and with a line about each step.

    Returns
    -------
    list of Row
        `ENCODER/DTYPE/SIZE` in img/s, once for each other side with the ratio to it; on a CPU with one image for each
        core, and `.../one-image`. For each of these, `.../rate` in TFLOP/s; `.../of-peak`, its share of
        `matmul-peak/DTYPE`, the rate of a product of two square matrices in the same round; `.../batch`, the batch
        size; `.../memory` of a call for each image, without the weights; `.../error`, the relative L2 distance from
        `segment_anything`'s float32 output, for bfloat16 with the ratio to that of `segment_anything` in bfloat16.
        `ENCODER/SIDE` is the speed of another side, and `ENCODER/auto` that of the dtype that is chosen, against the
        fastest of those that were measured. A side on which not even one image fits has a row with value 0.

    Raises
    ------
    InputError
        For an unknown encoder, device, dtype or side.
    """
    is_backbone = encoder.startswith(PREFIX)
    if encoder not in sam.VARIANTS and not is_backbone:
        raise UnknownName("encoder", encoder, sam.VARIANTS)
    for name in others:
        if name not in OTHERS:
            raise UnknownName("side of the bench", name, OTHERS)
    if not dtypes:
        raise InputError(f"at least one dtype is needed, of auto, {', '.join(DTYPES)}")
    told = on_event or (lambda text: None)
    found: list[Row] = []

    def add(*rows: Row) -> None:
        for row in rows:
            found.append(row)
            if on_row is not None:
                on_row(row)

    target = resolve_device(device)
    if not (target.type == "cpu" and probe.has_int8()):
        dtypes = [name for name in dtypes if name != "int8"]
    computes = {name: _resolved(name, target) for name in dtypes}
    told(f"loading {encoder}")
    if is_backbone:
        from benchmarks.backbone import rows_of  # which imports this module

        distinct = list(dict.fromkeys(computes.values()))
        add(*rows_of(encoder, checkpoint, target, distinct, image_size, batch_size, rounds))
        return found
    plain, _ = sam.load(encoder, checkpoint, image_size)
    plain = plain.to(target)
    ours = []
    for compute in dict.fromkeys(computes.values()):
        made = sam.Encoder(encoder, checkpoint, str(target), compute, image_size)
        ours.append(Side(f"{compute}/{image_size}", made.dtype, made.forward))
    theirs = [_shipped(name, plain, target) for name in others if name.startswith(SHIPPED)]
    installed = importlib.util.find_spec("transformers") is not None
    if TRANSFORMERS in others and installed and image_size == sam.IMAGE_SIZE:
        theirs.append(_transformers(encoder, target))

    threads = torch.get_num_threads()
    on_cpu = target.type == "cpu"
    most = batch_size or (threads if on_cpu else GPU_BATCH)
    shape = max(most, 2), 3, image_size, image_size
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(target)
    if on_cpu and most > 1:
        ours += [replace(side, name=side.name + ONE) for side in ours]
    batches = {}
    for side in (*ours, *theirs):
        found_size = batch_size or _batch(side, side in ours, pixels, target)
        if not found_size:
            add(Row(f"{encoder}/{side.name}", 0.0, "img/s, since not one image fits"))
        else:
            batches[side.name] = found_size
    ours, theirs = ([side for side in sides if side.name in batches] for sides in (ours, theirs))

    measures: dict[str, Callable[[], float]] = {}
    for side in (*ours, *theirs):
        x = pixels[: batches[side.name]].to(side.dtype)
        measures[side.name] = lambda side=side, x=x: rate(side, x, target)  # type: ignore[misc]
    for side in ours:
        name = _peak_name(side.dtype)
        measures[name] = lambda dtype=side.dtype: _product_rate(target, dtype)  # type: ignore[misc]
    told(f"{rounds + 1} rounds of {', '.join(measures)}")
    values = alternating(measures, rounds)

    per_image = operations(encoder, image_size) / 1e12
    for side in ours:
        name = f"{encoder}/{side.name}"
        rates = values[side.name]
        add(*(against(name, "img/s", rates, other.name, values[other.name]) for other in theirs))
        if not theirs:
            add(alone(name, "img/s", rates))
        flops = [rate * per_image for rate in rates]
        add(alone(f"{name}/rate", "TFLOP/s", flops))
        if not side.name.startswith(INT8):  # which has a peak of its own
            peak = values[_peak_name(side.dtype)]
            shares = [mine / most for mine, most in zip(flops, peak, strict=True)]
            add(alone(f"{name}/of-peak", "share", shares))
    for side in theirs:
        add(alone(f"{encoder}/{side.name}", "img/s", values[side.name]))
    names = [side.name for side in ours if not side.name.startswith(INT8)]
    floats = {name: values[name] for name in names if not name.endswith(ONE)}
    chosen = f"{computes.get('auto')}/{image_size}"
    if chosen in floats and len(floats) > 1:
        best = max(floats, key=lambda name: statistics.median(floats[name]))
        add(against(f"{encoder}/auto", "img/s", floats[chosen], f"best: {best}", floats[best]))
    for name in dict.fromkeys(_peak_name(side.dtype) for side in ours):
        add(alone(name, "TFLOP/s", values[name]))
    for side in (*ours, *theirs):
        told(f"memory of {side.name}")
        batch = batches[side.name]
        add(Row(f"{encoder}/{side.name}/batch", batch, "images"))
        used = _memory(side, pixels[:batch].to(side.dtype), target)
        if used is not None:
            add(Row(f"{encoder}/{side.name}/memory", used / batch / 2**20, "MiB an image"))
    told("comparing outputs")
    add(*_errors(encoder, ours, theirs, plain, pixels[:2]))
    return found


def _resolved(name: str, device: torch.device) -> str:
    if name == "int8":
        return resolve_compute("auto", "int8", device)
    return resolve_compute(name, "fast", device)


def _shipped(name: str, plain: nn.Module, device: torch.device) -> Side:
    """Return the modules of `segment_anything` as a side, in float32, with autocast, or in bfloat16."""
    how = name.removeprefix(SHIPPED)
    if how == "bfloat16":
        return Side(name, torch.bfloat16, copy.deepcopy(plain).bfloat16())
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    if how == "autocast":
        around = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731

    def run(x: Tensor) -> Tensor:
        with around():
            return plain(x)  # type: ignore[no-any-return]

    return Side(name, torch.float32, run)


def _transformers(encoder: str, device: torch.device) -> Side:
    """Return the encoder of transformers as a side: same shape, random weights, bfloat16, fused attention."""
    from transformers import SamVisionConfig, SamVisionModel

    variant = sam.VARIANTS[encoder]
    config = SamVisionConfig(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        mlp_dim=4 * variant.width,
        global_attn_indexes=list(variant.taps),
        window_size=sam.WINDOW,
        image_size=sam.IMAGE_SIZE,
    )
    config._attn_implementation = "sdpa"
    model = SamVisionModel(config).eval().requires_grad_(False).to(device, torch.bfloat16)
    for parameter in model.parameters():  # relative positions are initialised to zero
        parameter.copy_(0.02 * torch.randn(parameter.shape))

    def run(x: Tensor) -> Tensor:
        return model(x).last_hidden_state  # type: ignore[no-any-return]

    return Side(TRANSFORMERS, torch.bfloat16, run)


@torch.inference_mode()
def _batch(side: Side, ours: bool, pixels: Tensor, device: torch.device) -> int:
    """Choose the batch size of a side, 0 if not even one image fits."""
    if device.type == "cpu":
        return torch.get_num_threads() if ours and not side.name.endswith(ONE) else 1
    size = len(pixels)
    while size:
        try:
            side.run(pixels[:size].to(side.dtype))
            return size
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        size //= 2
    return 0


@torch.inference_mode()
def rate(side: Side, x: Tensor, device: torch.device) -> float:
    """Measure images per second; on a CPU, one call is long enough to be timed."""
    began, done = _now(device), 0
    while True:
        side.run(x)
        done += len(x)
        seconds = _now(device) - began
        if device.type == "cpu" or seconds >= SECONDS:
            return done / seconds


def _now(device: torch.device) -> float:
    """Read the clock after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def operations(name: str, image_size: int = 1024) -> int:
    """Count the floating-point operations of the products for one image: a multiplication and an addition each.

    In windows at the edge, keys on padding count and queries do not: every query sees 14 x 14 keys.
    """
    variant, side = sam.VARIANTS[name], image_size // PATCH
    tokens, width, taps = side * side, variant.width, len(variant.taps)
    linear = variant.depth * 12 * width**2 + 3 * PATCH**2 * width
    neck = width * sam.CHANNELS + 9 * sam.CHANNELS**2
    # Scores and weighted values for each key, and two relative positions for each row and column of keys.
    everywhere, windows = 2 * tokens + 2 * side, 2 * sam.WINDOW**2 + 2 * sam.WINDOW
    attention = taps * everywhere + (variant.depth - taps) * windows
    return 2 * tokens * (linear + neck + attention * width)


def _peak_name(dtype: torch.dtype) -> str:
    return f"matmul-peak/{_short(dtype)}"


@torch.inference_mode()
def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the product of two square matrices of random numbers, in TFLOP/s: the best of three."""
    n = SIDE_OF_PRODUCT[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(4):
        began = _now(device)
        a @ b
        times.append(_now(device) - began)
    return 2 * n**3 / min(times[1:]) / 1e12


def _memory(side: Side, x: Tensor, device: torch.device) -> int | None:
    """Measure the bytes that a call allocates at its peak; None if the system does not report it."""
    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            side.run(x)
            return torch.cuda.max_memory_allocated(device) - before
        with _peak_from_here() as peak:
            side.run(x)
        return peak()


@contextmanager
def _peak_from_here() -> Iterator[Callable[[], int | None]]:
    """In a `with` block, measure how far the resident size grows; on Linux only."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        yield lambda: None
        return
    _trim()
    reset.write_text("5")
    before, largest = peak_memory(), 0  # the peak was reset to the present size

    def peak() -> int:
        return largest - before

    yield peak
    largest = peak_memory()


def _trim() -> None:
    """Return free memory to the system, which a call could else use without the process growing (glibc only)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@torch.inference_mode()
def _errors(
    encoder: str, ours: Sequence[Side], theirs: Sequence[Side], plain: nn.Module, pixels: Tensor
) -> list[Row]:
    """Compare outputs with the float32 output of the plain modules."""
    try:
        exact = torch.cat([plain(x) for x in torch.split(pixels, 1)]).cpu().double()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return []

    def error_of(side: Side) -> float:
        out = torch.cat([side.run(x.to(side.dtype)) for x in torch.split(pixels, 1)])
        return float((out.cpu().double() - exact).norm() / exact.norm())

    low = [side for side in theirs if side.name in (f"{SHIPPED}bfloat16", f"{SHIPPED}autocast")]
    errors = {side.name: error_of(side) for side in low}
    rows = [Row(f"{encoder}/{name}/error", value, "relative L2") for name, value in errors.items()]
    for side in ours:
        if side.name.endswith(ONE):
            continue  # the same function
        value, name = error_of(side), f"{encoder}/{side.name}/error"
        own = errors.get(f"{SHIPPED}bfloat16") if side.dtype == torch.bfloat16 else None
        if own is None:
            rows.append(Row(name, value, "relative L2"))
        else:
            rows.append(Row(name, value, "relative L2", f"{SHIPPED}bfloat16", value / own))
    return rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

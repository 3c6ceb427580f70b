"""Speed of a backbone of transformers as an encoder, beside a plain loop over the same network in the same dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.encoder import GPU_BATCH, ONE, Side, rate
from benchmarks.paired import Row, against, alternating
from samtl.encoders import hf
from samtl.encoders.torch_encoder import DTYPES
from samtl.encoders.weights.hub import find


@torch.inference_mode()
def rows_of(
    encoder: str,
    checkpoint: str,
    device: torch.device,
    computes: Sequence[str],
    image_size: int,
    batch_size: int | None,
    rounds: int,
) -> Iterator[Row]:
    """Measure `hf:NAME`, as `bench_encoder` describes it.

    The other side is `transformers-DTYPE`: on a CPU one image at a time and all cores, on a GPU the same batch.
    `.../error` is the relative L2 distance of the tokens from those in the network's float32.
    """
    on_cpu = device.type == "cpu"
    most = batch_size or (torch.get_num_threads() if on_cpu else GPU_BATCH)
    pixels = torch.randn(most, 3, image_size, image_size).to(device)
    exact = None
    for compute in computes:
        ours = hf.Encoder(encoder, checkpoint, str(device), compute, image_size)
        dtype, name = ours.dtype, f"{encoder}/{compute}/{image_size}"
        model, _ = hf.load(find(encoder), checkpoint)
        if exact is None:
            exact = _tokens(hf.output(model.to(device), pixels[:1]), ours)
        model = model.to(device, dtype)

        def plain(x: Tensor, model: torch.nn.Module = model) -> Tensor:
            return torch.cat(
                [hf.output(model, part) for part in torch.split(x, 1 if on_cpu else most)]
            )

        sides = {name: Side(name, dtype, ours.forward), "": Side("", dtype, plain)}
        batches = dict.fromkeys(sides, pixels.to(dtype))
        if on_cpu and most > 1:
            sides[name + ONE], batches[name + ONE] = sides[name], pixels[:1].to(dtype)
        measures = {
            key: lambda side=side, x=batches[key]: rate(side, x, device)
            for key, side in sides.items()
        }
        values = alternating(measures, rounds)
        vs = f"transformers-{next(n for n, d in DTYPES.items() if d == dtype)}"
        theirs = values.pop("")
        yield from (against(key, "img/s", found, vs, theirs) for key, found in values.items())
        found = ours.forward(pixels[:1].to(dtype)).double()
        yield Row(f"{name}/error", float((found - exact).norm() / exact.norm()), "relative L2")


def _tokens(output: Tensor, ours: hf.Encoder) -> Tensor:
    """Arrange the last tokens of a network as `dense`."""
    if output.ndim == 3:
        channels, *sides = ours.spec.shape("dense")
        output = output[:, -sides[0] * sides[1] :].transpose(1, 2).reshape(1, channels, *sides)
    return output.double()

"""What this machine can do, and when its memory gives out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from samtl.errors import ResourceError


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # AVX-512 alone would emulate it. Older torch cannot tell: then float32 is the safe answer.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def out_of_memory(error: RuntimeError) -> bool:
    """Tell lack of memory from a defect: CUDA has a class for it, MPS and the CPU only words."""
    told = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in told for word in words)


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory within a `with` block into a `ResourceError` that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(f"{what} does not fit in the memory that there is; {remedy}") from error

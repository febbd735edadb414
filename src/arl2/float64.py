"""Where float64 is computed: angles, timesteps and sums need it, and some devices (Apple's mps, some xpu) lack it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_refused: ContextVar[bool] = ContextVar("arl2_float64_refused", default=False)


def has_float64(device: torch.device | str) -> bool:
    """Whether tensors of a device may be float64."""
    return not _refused.get() and _of_device(torch.device(device))


def float64_device(device: torch.device | str) -> torch.device:
    """Where to compute in float64 what ``device`` is to have: the device itself if it can, else the CPU."""
    return torch.device(device if has_float64(device) else "cpu")


def widest_dtype(device: torch.device | str) -> torch.dtype:
    """float64 where the device has it, else float32."""
    return torch.float64 if has_float64(device) else torch.float32


@contextmanager
def without_float64() -> Iterator[None]:
    """Within the ``with``, every device computes as one without float64: to compare the two ways on one machine."""
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


@functools.cache
def _of_device(device: torch.device) -> bool:
    if device.type == "mps":
        return False
    if device.type == "xpu" and torch.xpu.is_available():
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return True

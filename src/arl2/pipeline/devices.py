"""Where a model runs, and in which precision where none was given."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from arl2.errors import ConfigError
from arl2.float64 import widest_dtype
from arl2.model.cost import transformer_size

AUTO = "auto"
# Smaller models gain nothing from half precision, and their reference outputs are float32.
_SMALL = 50_000_000  # parameters


def checked_device(name: str) -> str:
    """``name`` if torch can put a tensor there; of ``"auto"`` the best device of this machine.

    Raises:
        ConfigError: an unknown device, or one this machine does not have.
    """
    if name == AUTO:
        return best_device()
    if name == "meta":
        raise ConfigError("Device 'meta' computes nothing; try cpu.")
    try:
        torch.zeros(1, device=name, dtype=widest_dtype(name))
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, AttributeError) as error:
        raise ConfigError(f"Device {name!r} cannot be used here; this machine has {', '.join(devices())}.") from error
    return name


def best_device() -> str:
    """``cuda``, else ``xpu``, else ``mps``, else ``cpu``: the first that is there."""
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "xpu": torch.xpu.is_available,
        "mps": torch.backends.mps.is_available,
    }
    return next((name for name, is_there in there.items() if is_there()), "cpu")


def devices() -> list[str]:
    """Names of the devices of this machine that torch can use, the CPU first."""
    return [
        "cpu",
        *(f"cuda:{index}" for index in range(torch.cuda.device_count())),
        *(f"xpu:{index}" for index in range(torch.xpu.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]


def has_own_memory(device: str) -> bool:
    """Whether a device has memory apart from the machine's, from which weights can be offloaded."""
    return device.startswith(("cuda", "xpu"))


def automatic_dtype(device: str, config: Mapping[str, Any]) -> torch.dtype:
    """What a transformer of this configuration computes in on a device, where nobody says: float32 if it is small."""
    dtype = large_model_dtype(device)
    if dtype == torch.float32:
        return dtype
    size = transformer_size(config)
    return torch.float32 if size.parameters + size.float32_parameters < _SMALL else dtype


def large_model_dtype(device: str) -> torch.dtype:
    """bfloat16, or float16 on a GPU without it; float32 on CPUs and on mps.

    On mps bfloat16 needs macOS 14, and nobody has measured it: it has to be asked for.
    """
    kind = torch.device(device).type
    if kind not in ("cuda", "xpu"):
        return torch.float32
    # Not one that is emulated: it would be slower than float32.
    has_bfloat16 = (
        torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else torch.xpu.is_bf16_supported()
    )
    return torch.bfloat16 if has_bfloat16 else torch.float16

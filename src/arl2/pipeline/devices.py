"""Devices named on the command line."""

import torch

from arl2.errors import ConfigError


def checked_device(name: str) -> str:
    """``name`` if torch can put a tensor there.

    Raises:
        ConfigError: an unknown device, or one this machine does not have.
    """
    if name == "meta":
        raise ConfigError("Device 'meta' computes nothing; try cpu.")
    try:
        # Rotations and sigmas are computed in float64, which some devices (mps) do not have.
        torch.zeros(1, device=name, dtype=torch.float64)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(f"Device {name!r} cannot be used here; this machine has {', '.join(devices())}.") from error
    return name


def devices() -> list[str]:
    """Names of the devices of this machine that torch can use, the CPU first."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]

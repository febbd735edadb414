"""How much memory is free on a device, as the driver or the operating system says."""

import os
from pathlib import Path

import torch

from arl2.model.settings import GenerationSettings
from arl2.pipeline.budget import MemoryBudgetError

_BYTES_A_PIXEL = 2 * 3 * 4  # blocks of float32, and the whole video that they become


def available_bytes(device: str, *, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can still be allocated on a device; None where nothing says.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``xpu``; others do not say.
        proc, cgroups: where Linux keeps its books. A container's limit counts if it is lower.
    """
    kind = torch.device(device).type
    if kind in ("cuda", "xpu"):
        return _device_free(device)
    if kind != "cpu":
        return None
    limits = [free for free in (_system_free(proc), _cgroup_free(proc, cgroups)) if free is not None]
    return min(limits) if limits else None


def require_room(video_frames: int, settings: GenerationSettings) -> None:
    """Refuse a video that cannot be held whole with ``MemoryBudgetError``; ``stream`` holds a block of it."""
    needed = _BYTES_A_PIXEL * video_frames * settings.height * settings.width
    free = available_bytes("cpu")
    if free is not None and needed > free:
        raise MemoryBudgetError(
            f"{video_frames} video frames of {settings.width} x {settings.height} take {needed / 1e9:,.0f} GB of "
            f"memory, and {free / 1e9:,.0f} GB are free; ask for fewer, or use pipe.stream(...), which gives one "
            "block at a time."
        )


def _device_free(device: str) -> int | None:
    """What the driver says is free, and what torch has set aside and does not use."""
    backend = torch.get_device_module(device)
    try:
        free = backend.mem_get_info(device)[0]
    except (RuntimeError, AttributeError):  # some drivers of Intel's do not say
        return None
    return int(free + backend.memory_reserved(device) - backend.memory_allocated(device))


def _system_free(proc: Path) -> int | None:
    table = _table(proc / "meminfo")
    if "MemAvailable:" in table:
        return 1024 * table["MemAvailable:"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return None


def _cgroup_free(proc: Path, cgroups: Path) -> int | None:
    """The tightest limit of the process's control groups (version 2, then 1) less what cannot be given back."""
    own = [line.split(":", 2)[2].lstrip("/") for line in _lines(proc / "self" / "cgroup") if line.startswith("0::")]
    folders = [cgroups / own[0], *(cgroups / own[0]).parents] if own else []
    inside = [folder for folder in folders if folder.is_relative_to(cgroups)]
    free = [_group_free(folder, "memory.max", "memory.current", "inactive_file") for folder in inside or [cgroups]]
    old = cgroups / "memory"
    free.append(_group_free(old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    known = [one for one in free if one is not None]
    return min(known) if known else None


def _group_free(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    numbers = [line for name in (limit, used) for line in _lines(folder / name)[:1]]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):  # "max" is no limit
        return None
    return max(0, int(numbers[0]) - int(numbers[1]) + _table(folder / "memory.stat").get(reclaimable, 0))


def _table(path: Path) -> dict[str, int]:
    words = [line.split() for line in _lines(path)]
    return {name: int(value) for name, value, *_ in (w for w in words if len(w) > 1) if value.isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return []  # not Linux, or not this kind of control group

"""How many CPU threads a command computes with, and how they wait for each other: one place for all commands.

The number does not follow from how busy the machine is: sums are split among threads, so the same seed would give other
bits on a busy day. What makes a busy machine slow is not the number but the waiting. At the end of every operation all
threads wait for the last one, and by default they spin on the core that it needs; here they sleep.
"""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

logger = logging.getLogger(__name__)

# Smaller models are done with an operation before a second thread is awake.
_SMALL = 50_000_000
_CHOSEN = "OMP_NUM_THREADS"
_WAITING = "OMP_WAIT_POLICY"
_QUOTAS = Path("/sys/fs/cgroup")


class Threads(NamedTuple):
    """A number of threads, and why."""

    number: int
    reason: str


def sleep_while_waiting() -> None:
    """Unless the user says otherwise. It is read once, when torch is imported."""
    os.environ.setdefault(_WAITING, "passive")


def use_threads(threads: int | None, pipe: "ARL2Pipeline | None" = None) -> None:
    """As many CPU threads as asked for; by default one where the model is small, else one for each core."""
    import torch

    parameters = None if pipe is None else sum(one.numel() for one in pipe.transformer.parameters())
    chosen = choose_threads(
        threads, parameters, of_torch=torch.get_num_threads(), cores=usable_cores(), environment=os.environ
    )
    if chosen.number != torch.get_num_threads():
        torch.set_num_threads(chosen.number)
    if pipe is not None:
        waiting = "sleep" if os.environ.get(_WAITING, "").lower() == "passive" else "spin"
        logger.info("CPU threads: %d (%s); those that wait %s", *chosen, waiting)


def choose_threads(
    asked: int | None, parameters: int | None, *, of_torch: int, cores: int, environment: Mapping[str, str]
) -> Threads:
    """The number of threads.

    Args:
        asked: by the user.
        parameters: of the model; None: not known yet, or not what decides.
        of_torch: torch's own number, one for each physical core.
        cores: that this process may use.
        environment: variables.
    """
    if asked is not None:
        return Threads(asked, "as requested")
    if _CHOSEN in environment:
        return Threads(of_torch, f"as {_CHOSEN} says")
    if parameters is not None and parameters < _SMALL:
        return Threads(1, "a small model is fastest on one")
    if cores < of_torch:
        return Threads(cores, "this process may use no more cores")
    return Threads(of_torch, "one for each core")


def usable_cores(quotas: Path = _QUOTAS) -> int:
    """Cores that this process may use: the machine's, less what its affinity and its container's quota forbid."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    return max(1, min(cores, math.ceil(_quota(quotas))))


def _quota(folder: Path) -> float:
    """Cores that a Linux container's quota of processor time comes to; a large number without one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else 1e6
    except (OSError, ValueError, ZeroDivisionError):  # no container, or "max"
        return 1e6

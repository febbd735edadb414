"""The machine that measures: what it is, what is installed, how fast it can be at best, and what tensors take of it."""

import datetime
import gc
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.evaluation.bench.timing import Stopwatch
from arl2.kernels.linear import linear
from arl2.kernels.timings import processor_name
from arl2.version import __version__

_PACKAGES = ("torch", "diffusers", "triton", "fla-core")
# What has to be equal for two results to be of one machine.
_TENSORS = {Tensor, torch.nn.Parameter}
_IDENTITY = ("processor", "cores", "device", "device_name")


def machine_facts(device: torch.device | str) -> dict[str, Any]:
    """Hardware, versions, commit and date, plain enough for JSON."""
    device = torch.device(device)
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": _load(),
        "device": device.type,
        "device_name": device_name(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "arl2": __version__,
        **{name: version_of(name) for name in _PACKAGES},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "time": Stopwatch(device).what,
    }


def machine_words(facts: Mapping[str, Any]) -> str:
    """The machine in a line."""
    on_device = "" if facts.get("device") == "cpu" else f"{facts.get('device_name')}, "
    threads = facts.get("threads")
    end = "" if threads == 1 else "s"
    return f"{on_device}{facts.get('processor')}, {facts.get('cores')} cores, {threads} thread{end}"


def is_same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether processor, cores and device are the same."""
    return all(one.get(name) == other.get(name) for name in _IDENTITY)


def ceilings(watch: Stopwatch, dtype: torch.dtype, *, repeats: int = 3) -> dict[str, float]:
    """What this machine reaches at best, now: a square matrix product in ``dtype``, and a copy.

    As layers multiply: on a CPU without instructions for half precision in float32, casts included.

    Returns:
        ``matrix_product_flops`` (a second) and ``copy_bytes`` (a second, read and written).
    """
    on_cpu = watch.device.type == "cpu"
    size, count = (1024, 1 << 26) if on_cpu else (8192, 1 << 29)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=draw).to(watch.device, dtype)
    source = torch.ones(count // 4, device=watch.device)
    target = torch.empty_like(source)
    # Several at once, unless one lasts long enough to be timed.
    with torch.no_grad():
        _ = linear(a, a)
        count_at_once = max(1, min(16, int(0.2 / max(watch.time(lambda: linear(a, a)).clock, 1e-9))))
        products = watch.timing(lambda: [linear(a, a) for _ in range(count_at_once)], repeats=repeats, warmup=0)
    copies = watch.timing(lambda: target.copy_(source), repeats=repeats)
    return {
        "matrix_product_flops": count_at_once * 2 * size**3 / min(products.runs),
        "copy_bytes": 2 * count / min(copies.runs),
    }


@contextmanager
def new_bytes(device: torch.device | str) -> Iterator[Callable[[], int]]:
    """Gives a function that says what tensors made within the ``with`` take now.

    That is what CUDA's allocator counts; elsewhere the storages of all living tensors that Python's collector knows and
    that were not there before.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.memory_allocated(device) - before
        return
    gc.freeze()  # takes what is there out of the collector's lists
    try:
        yield lambda: _living_bytes(device)
    finally:
        gc.unfreeze()


def _living_bytes(device: torch.device) -> int:
    tensors = [one for one in gc.get_objects() if type(one) in _TENSORS and one.device.type == device.type]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def device_name(device: torch.device) -> str:
    """A GPU's own name; of a CPU its processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.xpu.get_device_name(device) if device.type == "xpu" else processor_name()


def version_of(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Of a working copy; an installed package has its version alone."""
    package = Path(__file__).resolve().parents[2]
    try:
        # Of a checkout that holds the package, and not of a folder that happens to lie around an installation.
        found = [
            subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["ls-files", "--error-unmatch", "version.py"], ["describe", "--always", "--dirty"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "none (an installed package)"
    return found[1].stdout.strip()


def _load() -> float | None:
    """Processes that ran or waited to, over the last minute."""
    try:
        return round(os.getloadavg()[0], 1)
    except (OSError, AttributeError):
        return None

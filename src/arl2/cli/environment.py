"""``arl2 env``: what a bug report needs to say about a machine."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from arl2.cli.options import Command
from arl2.version import __version__

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "av", "datasets", "triton")


@dataclass(frozen=True, kw_only=True)
class Env(Command):
    """Versions, processor, threads and devices, for a bug report.

    Attributes:
        as_json: Print JSON instead of lines.
    """

    examples: ClassVar = ("arl2 env", "arl2 env --json > environment.json")
    as_json: bool = False

    def run(self) -> int:
        found = environment()
        if self.as_json:
            print(json.dumps(found, indent=1))
        else:
            for name, value in found.items():
                print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
        return 0


def environment() -> dict[str, Any]:
    """Names and values, plain enough for JSON."""
    import torch

    from arl2.evaluation.bench.machine import commit, version_of
    from arl2.kernels.timings import processor_name
    from arl2.pipeline.devices import best_device, devices, large_model_dtype

    of_gpu = {f"cuda:{i}": f" {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())}
    default = best_device()
    dtype = str(large_model_dtype(default)).removeprefix("torch.")
    packages = {name: version_of(name) for name in _PACKAGES}
    return {
        "arl2": __version__,
        "commit": commit(),
        "python": f"{platform.python_version()} {sys.executable}",
        **packages,
        "system": platform.platform(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "CUDA of torch": torch.version.cuda or "none",
        "devices": [name + of_gpu.get(name, "") for name in devices()],
        "device by default": f"{default}, {dtype} for large models",
        "FFmpeg": _ffmpeg(),
        "memory": _memory(),
    }


def _ffmpeg() -> str:
    """The libraries inside PyAV, which write and read video."""
    try:
        import av
    except ImportError as error:
        return f"not loaded ({error})"
    return ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items()))


def _memory() -> str:
    from arl2.pipeline.free_memory import available_bytes

    free = available_bytes("cpu")
    return "unknown" if free is None else f"{free / 1e9:.1f} GB free"

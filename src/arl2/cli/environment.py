"""``arl2 env``: what a bug report needs to say about a machine."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
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

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    packages = {name: _version_of(name) for name in _PACKAGES}
    return {
        "arl2": __version__,
        "python": f"{platform.python_version()} {sys.executable}",
        **packages,
        "system": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "CUDA of torch": torch.version.cuda or "none",
        "devices": ["cpu", *devices],
    }


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"

"""Layers compiled with ``torch.compile``: one graph for each kind of layer and pass, for all layers of the kind."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from arl2.attention.cross import CrossAttentionCache
from arl2.attention.kind import Access
from arl2.attention.layer_memory import LayerMemory
from arl2.errors import ConfigError
from arl2.files.cache import cache_folder
from arl2.kernels.backends import is_default, is_installed, settle_choices
from arl2.kernels.rope import Rotation
from arl2.model.layer import TransformerLayer
from arl2.model.runner import PassRunner

Compiler = Literal["inductor", "eager"]
# Two passes of each kind of layer, for every picture size and batch that a process meets; torch's own limit is 8.
_GRAPHS = 128


class CompiledRunner(PassRunner):
    """Compiles a layer's pass where its memory always looks alike; until a window is full it runs as it is.

    There are no graph breaks (the compiler refuses them), and from the block on at which the window is full nothing is
    compiled again. Passes with gradients, and within ``use_backends(...)``, are not compiled: a graph holds the choice
    of backends that was made for it.

    Args:
        compiler: ``"inductor"``, torch's own; or ``"eager"``, which records the graphs and computes them as they stand:
            the same bits as without in float32, to find faults.

    Raises:
        ConfigError: no compiler for this device.
    """

    def __init__(self, compiler: Compiler, device: torch.device) -> None:
        check_compiler(compiler, device)
        _keep_compiled_code()
        settle_choices()
        compiled: Callable[[Any], Any] = torch.compile(fullgraph=True, dynamic=False, backend=compiler)
        self.compiler = compiler
        self._stream, self._write = compiled(TransformerLayer.stream), compiled(TransformerLayer.commit)

    def stream(
        self,
        layer: TransformerLayer,
        x: Tensor,
        modulations: Tensor,
        words: CrossAttentionCache,
        rotation: Rotation,
        memory: LayerMemory,
        access: Access,
    ) -> Tensor:
        if not _is_fixed(memory):
            return super().stream(layer, x, modulations, words, rotation, memory, access)
        return self._compiled(self._stream, layer, x, modulations, words, rotation, memory, access)

    def write(
        self, layer: TransformerLayer, x: Tensor, modulations: Tensor, rotation: Rotation, memory: LayerMemory
    ) -> None:
        if _is_fixed(memory):
            self._compiled(self._write, layer, x, modulations, rotation, memory)
        else:
            super().write(layer, x, modulations, rotation, memory)

    def _compiled(self, run: Callable[..., Any], layer: TransformerLayer, *given: Any) -> Any:
        layer.self_attention.shared.settle()
        if torch._dynamo.config.recompile_limit < _GRAPHS:  # torch keeps its settings by thread
            torch._dynamo.config.recompile_limit = _GRAPHS
        try:
            return run(layer, *given)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"The model could not be compiled with {self.compiler!r}: {reason} Run it with compile 'off'."
            ) from error


def check_compiler(compiler: str, device: torch.device) -> None:
    """Refuse a compiler that lacks what it needs on ``device``.

    Raises:
        ConfigError: the message names what is missing.
    """
    if compiler == "eager":
        return
    missing = missing_for_inductor(device)
    if missing:
        raise ConfigError(f"Compiling needs {missing}, which is not here; install it, or use compile 'off'.")


def missing_for_inductor(device: torch.device) -> str:
    """What inductor needs on ``device`` and does not find; empty if nothing."""
    if device.type == "cpu":
        names = [os.environ.get("CXX", ""), "g++", "clang++"]
        return "" if any(name and shutil.which(name) for name in names) else "a C++ compiler (g++)"
    if device.type in ("cuda", "xpu"):
        if not is_installed("triton"):
            return "Triton"
        names = [os.environ.get("CC", ""), "gcc", "clang"]
        return "" if any(name and shutil.which(name) for name in names) else "a C compiler (gcc)"
    return ""


def _keep_compiled_code() -> None:
    """Let the next process start quickly: torch's own place for compiled code is the system's temporary folder."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    default = Path(tempfile.gettempdir(), "torchinductor_")
    if chosen is None or (Path(chosen).parent == default.parent and Path(chosen).name.startswith(default.name)):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled")


def _is_fixed(memory: LayerMemory) -> bool:
    return memory.is_steady() and is_default() and not torch.is_grad_enabled()

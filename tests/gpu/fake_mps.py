"""Tensors that say they are on ``mps``, with true numbers, on a machine without one.

Each holds a CPU tensor. What a real ``mps`` refuses is refused: float64, and operations whose inputs lie on two
devices. So whatever runs here also puts nothing of float64 on a Mac's GPU; whether Metal has every kernel is not shown.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gpu.fake_cuda import allow_device

needs_fake_mps = pytest.mark.skipif(
    shutil.which("g++") is None or torch.backends.mps.is_built(),
    reason="tensors that say they are on mps need g++, and a torch without mps",
)

_MOVES = {"_to_copy", "copy_", "_copy_from"}
_WIDE = (torch.float64, torch.complex128)


class OnMps(Tensor):
    """A CPU tensor in the dress of one on ``mps``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnMps":
        if held.dtype in _WIDE:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="mps",
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def fake_mps() -> Iterator[None]:
    """Within the ``with`` tensors can be made on, and moved to, ``"mps"``."""
    allow_device("MPS")
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    # ``module.to`` makes new parameters: filling a CPU parameter with a tensor of ours would lose what that holds.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Functions(), _Factories():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does differently for each device, before an operation is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is Tensor.new_tensor and isinstance(args[0], OnMps):
            return torch.tensor(args[1], dtype=options.get("dtype", args[0].dtype)).to("mps")
        if func is torch.tensor and torch.device(options.get("device") or "cpu").type == "mps":
            return torch.tensor(*args, **{**options, "device": "cpu"}).to("mps")
        if func is not F.scaled_dot_product_attention or not isinstance(args[0], OnMps):
            return func(*args, **options)
        q, k, v = args[:3]
        assert not options.get("is_causal")
        scores = q @ k.mT * (options.get("scale") or 1 / math.sqrt(q.shape[-1]))
        mask = options.get("attn_mask")
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1) @ v


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = [x for x in inputs if isinstance(x, OnMps)]
    if ours and name not in _MOVES and any(x.dim() for x in inputs if not isinstance(x, OnMps)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found mps and cpu.")
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type == "mps"
        kwargs = {**kwargs, "device": "cpu"}
    else:
        there = isinstance(args[0], OnMps) if name == "copy_" else bool(ours)
    if name == "_to_copy" and asked is not None and isinstance(args[0], OnMps) != there:
        kwargs["non_blocking"] = False
    plain_args, plain_kwargs = tree_map(lambda x: x.held if isinstance(x, OnMps) else x, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if name == "_to_copy" and not there and out is plain_args[0]:
        out = out.clone()
    if not there:
        return out
    known = {id(x.held): x for x in ours}
    return tree_map(lambda x: _dressed(x, known) if isinstance(x, Tensor) else x, out)


def _dressed(held: Tensor, known: dict[int, OnMps]) -> OnMps:
    """The tensor that holds it, after an operation in place; else a new one."""
    return known[id(held)] if id(held) in known else OnMps(held)

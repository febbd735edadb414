"""What a computation launches and moves: kernels, bytes, operations, waits and copies, counted as torch dispatches it.

The tensors may be real or fake, so a pass at full size can be counted on a machine that could never run it. The rule:

* every operation that torch dispatches and that is not a view is one kernel; it reads its inputs and writes its
  outputs once (broadcast dimensions count once, an operation in place reads and writes);
* attention and RMS norm, which torch computes in one kernel on a GPU, count as one whatever they fall apart into here;
* an operation of arl2 counts as many kernels as :func:`declare_launches` says.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from arl2.kernels.launches import launches_of

_MATRIX = {"mm", "addmm", "bmm", "baddbmm", "baddbmm_", "_addmm_activation", "convolution", "linalg_solve_triangular"}
# No kernel, although they are no views by name.
_FREE = {
    *("alias", "detach", "lift_fresh", "_unsafe_view", "_reshape_alias", "is_same_size", "size", "stride"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "set_", "resize_"),
}
_WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal", "unique_dim", "_unique2"}
_WRAPPERS = ("/torch/", "/jaxtyping/", "/beartype/", "/tests/annotations.py")  # what stands between our functions
_WRITES_ALONE = {"copy_", "fill_", "zero_", "normal_", "uniform_"}  # they do not read what they overwrite


@dataclass
class Cost:
    """What one kind of kernel came to.

    Attributes:
        kernels: launches.
        bytes: read and written.
        flops: operations, a multiply-add being two.
    """

    kernels: int = 0
    bytes: int = 0
    flops: int = 0

    def add(self, kernels: int, moved: int, flops: int) -> None:
        """One more."""
        self.kernels += kernels
        self.bytes += moved
        self.flops += flops


@dataclass
class Account:
    """What was counted.

    Attributes:
        by_kernel: cost of each operation, by its name in torch.
        by_place: the same by the function of arl2 that asked for it, ``module.function``, and operation.
        waits: operations for which the host has to wait for the device, with their place.
        transfers: copies between host and device, with their place.
        mixed: operations whose inputs lie on several devices, with their place; numbers without dimensions may.
    """

    by_kernel: dict[str, Cost] = field(default_factory=dict)
    by_place: dict[tuple[str, str], Cost] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    transfers: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    @property
    def matrix(self) -> Cost:
        """Matrix products and convolutions."""
        return self._sum(lambda name: name in _MATRIX)

    @property
    def attention(self) -> Cost:
        """Softmax attention."""
        return self._sum(lambda name: name == "attention")

    @property
    def elementwise(self) -> Cost:
        """All others: their time is the bytes they move."""
        return self._sum(lambda name: name not in _MATRIX and name != "attention")

    @property
    def kernels(self) -> int:
        """All launches."""
        return sum(cost.kernels for cost in self.by_kernel.values())

    @property
    def flops(self) -> int:
        """All operations of matrix products, convolutions and attention."""
        return sum(cost.flops for cost in self.by_kernel.values())

    def largest(self, count: int = 20) -> list[tuple[str, str, Cost]]:
        """Place, operation and cost of what moves the most bytes, matrix products aside."""
        others = [(place, name, cost) for (place, name), cost in self.by_place.items() if name not in _MATRIX]
        return sorted(others, key=lambda one: -one[2].bytes)[:count]

    def note(self, name: str, *, kernels: int, moved: int, flops: int) -> None:
        """Count one operation at the place that is running now."""
        for cost in (
            self.by_kernel.setdefault(name, Cost()),
            self.by_place.setdefault((_place(), name), Cost()),
        ):
            cost.add(kernels, moved, flops)

    def _sum(self, wanted: Callable[[str], bool]) -> Cost:
        total = Cost()
        for name, cost in self.by_kernel.items():
            if wanted(name):
                total.add(cost.kernels, cost.bytes, cost.flops)
        return total


@contextmanager
def accounted() -> Iterator[Account]:
    """Count everything that torch does within the ``with``."""
    account = Account()
    with _Whole(account), _Dispatched(account):
        yield account


class _Whole(TorchFunctionMode):
    """What is one kernel on a GPU, before torch takes it apart. The results are right in shape and hold no numbers."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self.account = account

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            return _FusedAttention.apply(self.account, q, k, v)
        if func is Tensor.backward and not any(value is not None and value is not False for value in kwargs.values()):
            # What is computed again on the way back is counted as what was computed on the way there.
            with _Whole(self.account):
                return torch.autograd.backward(*args)
        if func is F.rms_norm and not torch.is_grad_enabled():
            x, *rest = args
            weight = kwargs.get("weight", rest[1] if len(rest) > 1 else None)
            out = torch.empty_like(x)
            read = [x, out] if weight is None else [x, out, weight]
            self.account.note("rms_norm", kernels=1, moved=_bytes(read), flops=0)
            return out
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """One kernel forward, and three for the gradients, which compute the scores again: 5 products for 2."""

    @staticmethod
    def forward(ctx: Any, account: Account, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # As the fused kernels do: the strides of the queries, so that heads need no copy to be joined.
        out = torch.empty_like(q) if q.shape[-1] == v.shape[-1] else q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.flops = 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        ctx.account, ctx.moved = account, _bytes([q, k, v, out])
        ctx.save_for_backward(q, k, v)
        account.note("attention", kernels=1, moved=ctx.moved, flops=ctx.flops)
        return out

    @staticmethod
    def backward(ctx: Any, of_out: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        ctx.account.note("attention", kernels=3, moved=2 * ctx.moved + _bytes([of_out]), flops=5 * ctx.flops // 2)
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Dispatched(TorchDispatchMode):
    """Every operation that reaches the dispatcher."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self.account = account

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _WAITS:
            self.account.waits.append(f"{name} in {_place()}")  # before it runs: fake tensors cannot
        out = func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self._note_devices(name, inputs, outputs)
        if name in _FREE or func.namespace == "prim" or func.is_view:
            return out
        flops = _flops(func, args, kwargs, out)
        read = inputs[1:] if name in _WRITES_ALONE else inputs
        self.account.note(name, kernels=launches_of(name), moved=_bytes(read) + _bytes(outputs), flops=flops)
        return out

    def _note_devices(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        of_inputs = {x.device.type for x in inputs}
        if (of_inputs and {x.device.type for x in outputs} - of_inputs) or (name == "copy_" and len(of_inputs) > 1):
            self.account.transfers.append(f"{name} in {_place()}")
        elif len({x.device.type for x in inputs if x.dim()}) > 1:
            self.account.mixed.append(f"{name} in {_place()}")


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    if func.overloadpacket is torch.ops.aten._addmm_activation:
        func, kwargs = torch.ops.aten.addmm, {}  # the activation is no operation, as elsewhere
        return flop_registry[func](*args, out_val=out)
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(
        x.element_size() * math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step) for x in tensors
    )


def _place() -> str:
    """The innermost function that asked torch for it, as ``module.function``."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and not path.startswith("<") and not any(part in path for part in _WRAPPERS):
            return f"{Path(path).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"

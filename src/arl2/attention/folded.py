"""Several matrices folded into one, for passes in which starting a product costs more than computing it.

A small model on a CPU spends its time on starting operations. What its layers multiply one after the other without
anything between (a LoRA, a feature map) then becomes one matrix, in float64 and rounded once. It is made when it is
first needed and again whenever a parameter has changed. The parameters stay what they are: saving, training, adapters
and other devices see nothing of it. With gradients, in half precision and in float64 all is computed as it reads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from arl2.kernels.linear import is_untouched

LayerType = TypeVar("LayerType", bound=nn.Module)

_WIDEST = 512  # width; above, products of low rank are cheaper than the matrix that they fold into


class Affine(NamedTuple):
    """Weight ``[out, in]`` and bias ``[out]``, or none."""

    weight: Tensor
    bias: Tensor | None = None


class Watched:
    """Layers and their parameters as they are, to be found changed later. A look takes microseconds.

    A layer counts as changed if another one stands in its place or something hooks into it; a parameter, if another one
    stands in its place, or its storage was replaced or written to. What is written through ``.data`` is counted
    nowhere: :meth:`holds_the_same` looks at the numbers.
    """

    def __init__(self) -> None:
        self.weights: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self.copies: list[Tensor] = []
        self.layers: list[tuple[dict[str, Any], str, object]] = []
        self.hooks: list[tuple[dict[Any, Any], bool]] = []
        self.is_plain = True

    def layer(self, holder: nn.Module, name: str, kind: type[LayerType]) -> LayerType:
        """The layer ``holder.name`` and all of its parameters are watched. One of another kind cannot be folded."""
        layer = holder.get_submodule(name)
        self.layers += [(holder._modules, name, layer), (layer.__dict__, "forward", layer.__dict__.get("forward"))]
        self.hooks += [(hooks, bool(hooks)) for hooks in (layer._forward_hooks, layer._forward_pre_hooks)]
        self.is_plain = self.is_plain and type(layer) is kind and is_untouched(layer)
        for own, parameter in layer._parameters.items():
            if parameter is not None:
                self.parameter(layer, own)
        return cast(LayerType, layer)

    def parameter(self, holder: nn.Module, name: str) -> Tensor:
        """The parameter ``holder.name`` is watched."""
        own = holder._parameters[name]
        assert own is not None
        # Tensors of inference mode do not count how often they were written.
        if not own.is_inference() and own.dtype == torch.float32:
            self.weights.append((holder._parameters, name, own, own.data_ptr(), own._version))
            self.copies.append(own.detach().clone())
        else:
            self.is_plain = False
        return own

    def is_unchanged(self) -> bool:
        """Whether everything is what it was, as far as torch counts."""
        for holder, name, layer in self.layers:
            if holder.get(name) is not layer:
                return False
        for hooks, were_there in self.hooks:
            if bool(hooks) is not were_there:
                return False
        for holder, name, own, pointer, version in self.weights:
            if holder.get(name) is not own or own._version != version or own.data_ptr() != pointer:
                return False
        return True

    def holds_the_same(self) -> bool:
        """Whether all parameters have the numbers that they had."""
        return all(torch.equal(weight[2], copy) for weight, copy in zip(self.weights, self.copies, strict=True))


def may_fold(x: Tensor) -> bool:
    """Whether a pass over ``x`` may use what was folded."""
    return (
        type(x) is Tensor  # nothing that only stands for one
        and x.is_cpu
        and x.dtype is torch.float32
        and x.shape[-1] <= _WIDEST
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


class Folded:
    """What some layers fold into, as long as they stay as they are."""

    def __init__(self) -> None:
        self._made: tuple[Watched, Affine | None] | None = None

    def of(self, fold: Callable[[Watched], Affine | None]) -> Affine | None:
        """What ``fold`` makes of the layers that it watches; None if it folds nothing, or something hooks into them."""
        made = self._made  # once: another thread may replace it
        if made is None or not made[0].is_unchanged():
            watched = Watched()
            affine = fold(watched)
            self._made = made = watched, affine if watched.is_plain else None
        return made[1]

    def refresh(self) -> None:
        """Forget it if a parameter holds other numbers: see :meth:`Watched.holds_the_same`."""
        made = self._made
        if made is not None and not made[0].holds_the_same():
            self._made = None

    def __deepcopy__(self, _: object) -> "Folded":
        return Folded()

    def __reduce__(self) -> tuple[type["Folded"], tuple[()]]:
        return Folded, ()


def refresh_folded(model: nn.Module) -> None:
    """:meth:`Folded.refresh` of all that the parts of a model keep."""
    for part in model.modules():
        for kept in vars(part).values():
            if isinstance(kept, Folded):
                kept.refresh()

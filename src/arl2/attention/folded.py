"""Several matrices folded into one, for passes in which starting a product costs more than computing it.

A small model on a CPU spends its time on starting operations. What its layers multiply one after the other without
anything between (a LoRA, a feature map) then becomes one matrix, in float64 and rounded once. It is made when it is
first needed and again whenever a parameter has changed. The parameters stay what they are: saving, training, adapters
and other devices see nothing of it. With gradients, in half precision and in float64 all is computed as it reads.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WIDEST = 512  # rows and columns; above, products of low rank are cheaper than the matrix that they fold into


class Affine(NamedTuple):
    """Weight ``[out, in]`` and bias ``[out]``, or none."""

    weight: Tensor
    bias: Tensor | None = None


class _Made(NamedTuple):
    sources: tuple[Tensor, ...]
    marks: tuple[tuple[int, int], ...]
    copies: tuple[Tensor, ...]
    folded: Affine | None


def may_fold(x: Tensor, weight: Tensor) -> bool:
    """Whether a pass over ``x`` may use what ``weight`` is folded into."""
    return (
        type(x) is Tensor  # nothing that only stands for one
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and max(weight.shape) <= _WIDEST
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def refresh_folded(model: nn.Module) -> None:
    """:meth:`Folded.refresh` of all that the parts of a model keep."""
    for part in model.modules():
        for kept in vars(part).values():
            if isinstance(kept, Folded):
                kept.refresh()


class Folded:
    """What some parameters fold into, as long as they stay as they are."""

    def __init__(self) -> None:
        self._made: _Made | None = None

    def of(self, sources: Sequence[Tensor], fold: Callable[[], Affine | None]) -> Affine | None:
        """What ``fold`` makes of ``sources``; None if it folds nothing, or if nobody could see them change."""
        made = self._made  # once: another thread may replace it
        if made is not None and len(made.sources) == len(sources):
            for one, source, mark in zip(sources, made.sources, made.marks, strict=True):
                if one is not source or one.data_ptr() != mark[0] or one._version != mark[1]:
                    break
            else:
                return made.folded
        if any(one.is_inference() or one.dtype != torch.float32 for one in sources):
            return None  # tensors of inference mode do not count how often they were written
        marks = tuple((one.data_ptr(), one._version) for one in sources)
        copies = tuple(one.detach().clone() for one in sources)
        self._made = _Made(tuple(sources), marks, copies, fold())
        return self._made.folded

    def refresh(self) -> None:
        """Forget it if a parameter holds other numbers: what is written through ``.data`` is counted nowhere."""
        made = self._made
        if made is not None and not all(map(torch.equal, made.sources, made.copies)):
            self._made = None

    def __deepcopy__(self, _: object) -> "Folded":
        return Folded()

    def __reduce__(self) -> tuple[type["Folded"], tuple[()]]:
        return Folded, ()

"""Forward passes from outside: what each self-attention was given and gave, hidden states, and another window."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arl2.attention.layout import ClipLayout
from arl2.kernels.rope import Rotation
from arl2.model.layer import TransformerLayer
from arl2.model.transformer import CausalWanTransformer3DModel


class AttentionCall(NamedTuple):
    """One parallel self-attention: its normed and modulated input, its output, and where the tokens stand."""

    input: Float[Tensor, "batch tokens width"]
    output: Float[Tensor, "batch tokens width"]
    rotation: Rotation
    layout: ClipLayout


@contextmanager
def watched_attention(
    model: CausalWanTransformer3DModel, layers: Sequence[int], tell: Callable[[int, AttentionCall], None]
) -> Iterator[None]:
    """Within the context, ``tell(i, call)`` hears of every parallel self-attention of these layers."""

    def telling(i: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            x, rotation, layout = given
            tell(i, AttentionCall(x, output, rotation, layout))

        return hook

    handles = [_layer(model, i).self_attention.register_forward_hook(telling(i)) for i in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hidden_states(model: CausalWanTransformer3DModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A dictionary that holds, after a forward pass within the context, what these layers gave ``[B, T, d]``."""
    held: dict[int, Tensor] = {}

    def keep(i: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            held[i] = output

        return hook

    # Removed before the backward pass, so that activation checkpointing's second forward is not taken for a new one.
    handles = [_layer(model, i).register_forward_hook(keep(i)) for i in layers]
    try:
        yield held
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def seeing(model: CausalWanTransformer3DModel, window: int | None) -> Iterator[None]:
    """Within the context, the softmax layers see ``window`` latent frames in parallel passes (None: the whole past).

    The model stays what it is, in shards as well; ``with_window`` makes another one that shares its weights.
    """
    attentions = [_layer(model, i).self_attention for i in range(len(model.layers))]
    specs = [attention.spec for attention in attentions]
    for attention, spec in zip(attentions, specs, strict=True):
        attention.spec = spec.seeing(window)
    try:
        yield
    finally:
        for attention, spec in zip(attentions, specs, strict=True):
            attention.spec = spec


class ShrinkingWindows:
    """The windows of a model's layers in parallel passes: shrunk to the own block or to fewer frames, and restored.

    Layers that have no state beside a window are left as they are.
    """

    def __init__(self, model: CausalWanTransformer3DModel) -> None:
        self._attentions = [_layer(model, i).self_attention for i in range(len(model.layers))]
        self._specs = [attention.spec for attention in self._attentions]
        self.count = sum(spec.seeing_own_block() != spec for spec in self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def shrink(self, chosen: Bool[Tensor, " layers"], lengths: Sequence[int | None] | None = None) -> None:
        """Those of the chosen layers.

        Args:
            chosen: layers that see their own block alone.
            lengths: latent frames that each of the other layers sees; None: its own window.
        """
        for i, (attention, spec) in enumerate(zip(self._attentions, self._specs, strict=True)):
            length = lengths[i] if lengths is not None else None
            if chosen[i]:
                attention.spec = spec.seeing_own_block()
            elif length is None or spec.seeing_own_block() == spec:
                attention.spec = spec
            else:
                attention.spec = spec.seeing(length)

    def shrink_all(self) -> None:
        """Those of all layers, to the own block."""
        self.shrink(torch.ones(len(self), dtype=torch.bool))

    def restore(self) -> None:
        """Every layer sees its own window again."""
        self.shrink(torch.zeros(len(self), dtype=torch.bool))


def _layer(model: CausalWanTransformer3DModel, i: int) -> TransformerLayer:
    layer = model.layers[i]
    assert isinstance(layer, TransformerLayer)
    return layer

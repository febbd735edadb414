"""Looking into a forward pass from outside: what each self-attention was given and gave, and hidden states."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from arl2.model.layer import AttentionCall, TransformerLayer
from arl2.model.transformer import CausalWanTransformer3DModel


@contextmanager
def watched_attention(
    model: CausalWanTransformer3DModel, layers: Sequence[int], tell: Callable[[int, AttentionCall], None]
) -> Iterator[None]:
    """Within the context, ``tell(i, call)`` hears of every parallel self-attention of these layers."""
    watched = [_layer(model, i) for i in layers]
    for i, layer in zip(layers, watched, strict=True):
        layer.attention_watcher = lambda call, i=i: tell(i, call)
    try:
        yield
    finally:
        for layer in watched:
            layer.attention_watcher = None


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


def _layer(model: CausalWanTransformer3DModel, i: int) -> TransformerLayer:
    layer = model.layers[i]
    assert isinstance(layer, TransformerLayer)
    return layer

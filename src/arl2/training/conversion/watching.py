"""Forward passes from outside: what each self-attention was given and gave, hidden states, and another window."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from arl2.attention.softmax import SoftmaxAttention
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


@contextmanager
def seeing(model: CausalWanTransformer3DModel, window: int | None) -> Iterator[None]:
    """Within the context, the softmax layers see ``window`` latent frames in parallel passes (None: the whole past).

    The model stays what it is, in shards as well; ``with_window`` makes another one that shares its weights.
    """
    layers = [_layer(model, i).self_attention for i in range(len(model.layers))]
    softmax = {layer: layer.spec for layer in layers if isinstance(layer, SoftmaxAttention)}
    for layer, spec in softmax.items():
        layer.spec = replace(spec, window=window, sink=spec.sink if window is not None else 0)
    try:
        yield
    finally:
        for layer, spec in softmax.items():
            layer.spec = spec


def _layer(model: CausalWanTransformer3DModel, i: int) -> TransformerLayer:
    layer = model.layers[i]
    assert isinstance(layer, TransformerLayer)
    return layer

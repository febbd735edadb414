"""Half-precision compute with float32 masters: what is frozen is kept in bfloat16, what trains stays float32.

The model computes in the dtype of its frozen weights, as it does in use, and keeps its own list of what is float32
whatever that is (norms, modulation, time, ``A_log``, ``dt_bias``, the delta rule's state). Autocast would round
inside the delta rule and the time network, and FSDP's mixed precision would round that list, so neither is used: small
explicit casts are the same with shards and without.
"""

from typing import Any

import torch
from torch import Tensor, nn

from arl2.attention.hybrid import HybridAttention
from arl2.model.layer import TransformerLayer
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.task import Compute

_DTYPES: dict[Compute, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(compute: Compute) -> torch.dtype:
    """What ``loop.compute`` names."""
    return _DTYPES[compute]


def compute_beside_masters(student: CausalWanTransformer3DModel) -> None:
    """Let the float32 gates of hybrid layers take half-precision tokens: they are computed in float32.

    ``phi`` and the low-rank changes cast themselves. A gate gives one number per token and head, so the product is
    small; its float32 input lives as long as its layer's activations do.
    """
    for layer in student.layers:
        assert isinstance(layer, TransformerLayer)
        attention = layer.self_attention
        if isinstance(attention, HybridAttention):
            for gate in (attention.gate_proj, attention.state.decay_proj, attention.state.beta_proj):
                gate.register_forward_pre_hook(_in_own_dtype)


def _in_own_dtype(gate: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
    assert isinstance(gate, nn.Linear)
    (x,) = given
    return (x.to(gate.weight.dtype),)

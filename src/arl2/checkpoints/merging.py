"""LoRAs folded into the weights beside them, where that gives the same model.

The feed-forward's can be: ``W x + s (x A) B`` is ``(W + s (A B)^T) x``. The state branch's cannot: its q, k and v are
the shared projections plus the LoRA, and the shared projections alone feed the softmax inside the block. Nor can it
move into ``phi``: a norm stands between for q and k, and for v ``phi`` mixes within a head what the LoRA mixes across
all of them. So these stay, as the published layout keeps them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from arl2.attention.lora import LoRA, LoRALinear
from arl2.checkpoints.load import PUBLISHED_ALPHA
from arl2.model.layer import TransformerLayer
from arl2.model.transformer import CausalWanTransformer3DModel


class Merged(NamedTuple):
    """A model without LoRAs in its feed-forwards.

    Attributes:
        model: shares all other tensors with the one that it was made from.
        merged: how many were folded in; ``kept``: how many stay, in self-attention.
        parameters_saved: numbers that the model has less.
    """

    model: CausalWanTransformer3DModel
    merged: int
    kept: int
    parameters_saved: int


@torch.no_grad()
def merge_lora(model: CausalWanTransformer3DModel) -> Merged:
    """Fold the feed-forwards' LoRAs into their weights.

    Sums are made in float64 and rounded once, to the weight's own dtype; in half precision that rounds away part of a
    small change, so keep the LoRAs where that matters.
    """
    tensors = dict(model.state_dict())
    merged = kept = saved = 0
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, TransformerLayer)
        for half, part in (("up", layer.ffn.up), ("down", layer.ffn.down)):
            if not isinstance(part, LoRALinear):
                continue
            name = f"layers.{i}.ffn.{half}"
            saved += tensors.pop(f"{name}.change.A").numel() + tensors.pop(f"{name}.change.B").numel()
            del tensors[f"{name}.linear.weight"]
            tensors[f"{name}.weight"] = _sum(part.linear.weight, part.change)
            tensors[f"{name}.bias"] = tensors.pop(f"{name}.linear.bias")
            merged += 1
        kept += sum(isinstance(part, LoRA) for part in layer.self_attention.modules())
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        plain = CausalWanTransformer3DModel(**{**settings, "ffn_rank": 0})
    plain.load_state_dict(tensors, strict=True, assign=True)
    return Merged(plain.train(model.training), merged, kept, saved)


@torch.no_grad()
def with_published_alpha(model: CausalWanTransformer3DModel) -> CausalWanTransformer3DModel:
    """The same model with the published alpha, which readers of the published layout take for granted.

    No file of that layout says its alpha; another one is folded into ``B``, exactly where their ratio is a power of 2.
    A model that has it already is returned as it is.
    """
    changes = [(name, part) for name, part in model.named_modules() if isinstance(part, LoRA)]
    published = {name: PUBLISHED_ALPHA / part.A.shape[-1] for name, part in changes}
    if all(part.scale == published[name] for name, part in changes):
        return model
    tensors = dict(model.state_dict())
    for name, part in changes:
        tensors[f"{name}.B"] = (part.B.double() * (part.scale / published[name])).to(part.B.dtype)
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        same = CausalWanTransformer3DModel(**{**settings, "low_rank_alpha": PUBLISHED_ALPHA})
    same.load_state_dict(tensors, strict=True, assign=True)
    return same.train(model.training)


def _sum(weight: Tensor, change: LoRA) -> Tensor:
    """The weight ``[out, in]`` plus what the LoRA adds to it."""
    low_rank = (change.A.double() @ change.B.double()).T * change.scale
    return (weight.double() + low_rank).to(weight.dtype).contiguous()

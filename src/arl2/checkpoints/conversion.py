"""A softmax model made hybrid: every pretrained weight kept, the state branch added at its start values.

Nothing is trained here. Until it is, a converted layer sees its own block as before and little of what came earlier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arl2.attention.hybrid import HybridAttention
from arl2.attention.lora import LoRALinear
from arl2.attention.plan import HybridSpec, parse_plan, plan_of
from arl2.errors import ConfigError
from arl2.model.layer import TransformerLayer
from arl2.model.precision import parameter_dtype
from arl2.model.transformer import CausalWanTransformer3DModel

PUBLISHED_RANK = 16


@dataclass(frozen=True)
class Conversion:
    """A converted model and what of it is new.

    Attributes:
        model: the hybrid model, on the device and in the dtype of the one it came from.
        new: names of the tensors that no pretrained weight filled; all that training has to move.
        new_parameters, parameters: how many numbers these hold, and the whole model.
    """

    model: CausalWanTransformer3DModel
    new: tuple[str, ...]
    new_parameters: int
    parameters: int


@torch.no_grad()
def convert(
    model: CausalWanTransformer3DModel,
    plan: str | Sequence[int],
    *,
    state_rank: int = PUBLISHED_RANK,
    ffn_rank: int = PUBLISHED_RANK,
    low_rank_alpha: float | None = None,
    ffn_rank_layers: str = "hybrid",
    seed: int = 0,
) -> Conversion:
    """Make layers hybrid (spec 1, "Start values"). Pretrained tensors are shared with ``model``, not copied.

    Args:
        model: its softmax layers can become hybrid; layers that are hybrid already stay as they are.
        plan: one letter a layer, such as ``HHSH``, or the indices of the hybrid layers.
        state_rank, ffn_rank: of the low-rank changes; 0 for none. Of a model that has hybrid layers already, theirs.
        low_rank_alpha: as in the config; None is twice the rank.
        ffn_rank_layers: ``"hybrid"`` or ``"all"``.
        seed: of the new parameters' random start.

    Raises:
        ConfigError: a plan that does not fit the model, or would turn a hybrid layer back.
    """
    before = model.config.layer_plan
    after = parse_plan(plan, len(before)) if isinstance(plan, str) else plan_of(plan, len(before))
    if HybridSpec.letter in before and (state_rank, ffn_rank) != (model.config.state_rank, model.config.ffn_rank):
        raise ConfigError(
            f"The model's hybrid layers have ranks {model.config.state_rank} and {model.config.ffn_rank}; the others "
            f"cannot have {state_rank} and {ffn_rank}: give the same."
        )
    back = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old == HybridSpec.letter != new]
    if back:
        raise ConfigError(
            f"Layers {back} are hybrid already and the plan {after} makes them softmax; their softmax past is gone, "
            "so convert the original model instead."
        )
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    settings |= {"layer_plan": after}
    # Of a model that has hybrid layers, trained low-rank changes keep their scale.
    if HybridSpec.letter in after and HybridSpec.letter not in before:
        settings |= {"state_rank": state_rank, "ffn_rank": ffn_rank, "low_rank_alpha": low_rank_alpha}
        settings |= {"ffn_rank_layers": ffn_rank_layers}
    with torch.device("meta"):
        converted = CausalWanTransformer3DModel(**settings)

    held = dict(model.state_dict())
    kept = {name: held[source] for name in converted.state_dict() if (source := _source(name, held)) is not None}
    unfit = sorted(name for name, x in converted.state_dict().items() if name in kept and kept[name].shape != x.shape)
    lost = len(held) - len(kept)
    if unfit or lost:
        raise ConfigError(
            f"{len(unfit) or lost} tensors of the model do not fit the conversion, first {(unfit or ['?'])[0]}: its "
            "hybrid layers have other ranks; give state_rank and ffn_rank as they are."
        )
    converted.load_state_dict(kept, strict=False, assign=True)
    _fill_new(converted, set(kept), model.patch_embedding.weight, torch.Generator().manual_seed(seed))
    new = tuple(name for name in converted.state_dict() if name not in kept)
    sizes = {name: x.numel() for name, x in converted.state_dict().items()}
    converted.train(model.training)
    return Conversion(converted, new, sum(sizes[name] for name in new), sum(sizes.values()))


def config_after(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The configuration after ``convert`` of these layers besides those that are hybrid already, with its defaults.

    Raises:
        ConfigError: a layer outside the model.
    """
    before = str(config["layer_plan"])
    kept = {i for i, letter in enumerate(before) if letter == HybridSpec.letter}
    ranks = {} if kept else {"state_rank": PUBLISHED_RANK, "ffn_rank": PUBLISHED_RANK}
    return {**config, **ranks, "layer_plan": plan_of(sorted(kept | set(layers)), len(before))}


def _source(name: str, held: dict[str, Tensor]) -> str | None:
    """Where the pretrained model keeps what the converted one calls ``name``; None for what is new."""
    if name in held:
        return name
    # A feed-forward that gains a low-rank change keeps its weights one level deeper.
    flat = name.replace(".ffn.up.linear.", ".ffn.up.").replace(".ffn.down.linear.", ".ffn.down.")
    return flat if flat in held else None


def _fill_new(model: CausalWanTransformer3DModel, kept: set[str], like: Tensor, generator: torch.Generator) -> None:
    """Start values for every parameter still on the meta device, drawn layer by layer on the CPU in float32."""
    if like.is_meta:
        return  # a model without weights: only sizes were asked for
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, TransformerLayer)
        parts: list[nn.Module] = []
        attention = layer.self_attention
        if isinstance(attention, HybridAttention) and f"layers.{i}.self_attention.gate_proj.weight" not in kept:
            _materialise(attention.state)
            attention.state.reset_parameters(generator)
            _materialise(attention.gate_proj)
            attention.reset_gate(generator)
            parts += [attention.state, attention.gate_proj]
        for half in (layer.ffn.up, layer.ffn.down):
            if isinstance(half, LoRALinear) and half.change.A.is_meta:
                _materialise(half.change)
                half.change.reset_parameters(generator)
                parts.append(half.change)
        for part in parts:
            _cast(model, part, like)


def _materialise(part: nn.Module) -> None:
    part.to_empty(device="cpu")
    part.float()


def _cast(model: CausalWanTransformer3DModel, part: nn.Module, like: Tensor) -> None:
    """To the model's device and dtype, a few parameters staying float32."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in part.parameters():
        dtype = parameter_dtype(names[id(parameter)], like.dtype)
        parameter.data = parameter.data.to(device=like.device, dtype=dtype)

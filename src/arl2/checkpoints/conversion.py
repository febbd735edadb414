"""Softmax layers made of another kind: every pretrained weight kept, what is new added at its start values.

Nothing is trained here. Until it is, a hybrid layer sees its own block as before and little of earlier ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arl2.attention.kind import SelfAttention
from arl2.attention.lora import LoRA, LoRALinear
from arl2.attention.plan import converted_layers, kind_of, parse_plan, plan_of, with_converted
from arl2.errors import ConfigError
from arl2.model.layer import TransformerLayer
from arl2.model.precision import parameter_dtype
from arl2.model.transformer import CausalWanTransformer3DModel

PUBLISHED_RANK = 16
# Of a first conversion, unless others are given.
START_SETTINGS: dict[str, Any] = {
    "state_rank": PUBLISHED_RANK,
    "ffn_rank": PUBLISHED_RANK,
    "low_rank_alpha": None,
    "ffn_rank_layers": "hybrid",
    "state_form": None,
    "state_horizon": None,
}


@dataclass(frozen=True)
class Conversion:
    """A converted model and what of it is new.

    Attributes:
        model: on the device and in the dtype of the one that was converted.
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
    state_rank: int | None = None,
    ffn_rank: int | None = None,
    low_rank_alpha: float | None = None,
    ffn_rank_layers: str | None = None,
    state_form: Mapping[str, Any] | None = None,
    state_horizon: int | None = None,
    seed: int = 0,
) -> Conversion:
    """Make softmax layers of another kind. Pretrained tensors are shared with ``model``, not copied.

    New parameters are initialized by ``SelfAttention.reset_parameters`` of their kind.

    Args:
        model: its softmax layers can be converted; layers that are converted already stay as they are.
        plan: one letter a layer, such as ``HHSH``, or the indices of the hybrid layers.
        state_rank, ffn_rank: of the LoRAs; 0 for none. None: as published, or those of a model that has converted
            layers already, which no others can join.
        low_rank_alpha: as in the config; None is twice the rank, or what the model has.
        ffn_rank_layers: ``"hybrid"`` (the default) or ``"all"``.
        state_form: of windowed hybrid layers, as in the config; None is the default form, or what the model has.
        state_horizon: latent frames that states reach back, as in the config; None is no limit, or what the model has.
        seed: of the new parameters' random start.

    Raises:
        ConfigError: a plan that does not fit the model, or would change a converted layer; settings that the model's
            converted layers do not share.
    """
    before = str(model.config.layer_plan)
    after = parse_plan(plan, len(before)) if isinstance(plan, str) else plan_of(plan, len(before))
    changed = [i for i in converted_layers(before) if before[i] != after[i]]
    if changed:
        was = kind_of(before[changed[0]]).name
        raise ConfigError(
            f"Layers {changed} are {was} already and the plan {after} changes them; their softmax past is gone, "
            "so convert the original model instead."
        )
    asked = {
        "state_rank": state_rank,
        "ffn_rank": ffn_rank,
        "low_rank_alpha": low_rank_alpha,
        "ffn_rank_layers": ffn_rank_layers,
        "state_form": None if state_form is None else dict(state_form),
        "state_horizon": state_horizon,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    settings |= {"layer_plan": after}
    if converted_layers(before):
        # LoRAs that are trained keep their rank and scale, and there is one of each in a configuration.
        _refuse_other_settings(model.config, given)
    elif converted_layers(after):
        settings |= {**START_SETTINGS, **given}
    with torch.device("meta"):
        converted = CausalWanTransformer3DModel(**settings)

    held = dict(model.state_dict())
    kept = {name: held[source] for name in converted.state_dict() if (source := _source(name, held)) is not None}
    unfit = sorted(name for name, x in converted.state_dict().items() if name in kept and kept[name].shape != x.shape)
    if unfit or len(kept) < len(held):
        raise ConfigError(
            f"{len(unfit) or len(held) - len(kept)} tensors of the model have no place in the converted one, first "
            f"{(unfit or sorted(held.keys() - kept.keys()))[0]}: give ffn_rank and ffn_rank_layers as the model has "
            "them."
        )
    converted.load_state_dict(kept, strict=False, assign=True)
    new = tuple(name for name in converted.state_dict() if name not in kept)
    _fill_new(converted, new, model.patch_embedding.weight, torch.Generator().manual_seed(seed))
    sizes = {name: x.numel() for name, x in converted.state_dict().items()}
    converted.train(model.training)
    return Conversion(converted, new, sum(sizes[name] for name in new), sum(sizes.values()))


def config_after(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The configuration after ``convert`` has made these layers hybrid, with its defaults.

    Raises:
        ConfigError: a layer outside the model.
    """
    before = str(config["layer_plan"])
    start = {} if converted_layers(before) else START_SETTINGS
    return {**config, **start, "layer_plan": with_converted(before, layers)}


def _refuse_other_settings(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value != config[name]:
            raise ConfigError(
                f"The model's converted layers have {name} {config[name]}; the others cannot have {value}: leave it "
                "out, or give the same."
            )


def _source(name: str, held: dict[str, Tensor]) -> str | None:
    """Where the pretrained model keeps what the converted one calls ``name``; None for what is new."""
    if name in held:
        return name
    # A feed-forward that gains a LoRA keeps its weights one level deeper.
    flat = name.replace(".ffn.up.linear.", ".ffn.up.").replace(".ffn.down.linear.", ".ffn.down.")
    return flat if flat in held else None


def _fill_new(model: CausalWanTransformer3DModel, new: Sequence[str], like: Tensor, generator: torch.Generator) -> None:
    """Start values for every parameter still on the meta device, drawn layer by layer on the CPU in float32."""
    if like.is_meta:
        return  # a model without weights: only sizes were asked for
    for layer in model.layers:
        assert isinstance(layer, TransformerLayer)
        parts: list[SelfAttention | LoRA] = [layer.self_attention]
        parts += [half.change for half in (layer.ffn.up, layer.ffn.down) if isinstance(half, LoRALinear)]
        for part in parts:
            if _materialise(part):
                part.reset_parameters(generator)
    for name in new:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(device=like.device, dtype=parameter_dtype(name, like.dtype))


def _materialise(part: nn.Module) -> bool:
    """Room in float32 for what has none; whether anything had none."""
    empty = [
        (module, name)
        for module in part.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta
    ]
    for module, name in empty:
        setattr(module, name, nn.Parameter(torch.empty(getattr(module, name).shape)))
    return bool(empty)

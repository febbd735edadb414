"""Transformers with random weights at the sizes of a preset; speed and memory do not depend on the values."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from arl2.attention.plan import plan_of
from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.errors import ConfigError
from arl2.evaluation.bench.options import ModelOptions
from arl2.model.precision import cast_model
from arl2.model.presets import PRESETS
from arl2.model.transformer import CausalWanTransformer3DModel

# Sizes of their own. ``small`` is Wan 2.1 1.3B with a quarter of everything (width, heads, feed-forward, words, LoRA
# rank, tokens a frame), so that its work has the same proportions, and a CPU can measure 921 video frames of it.
_OWN: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "ffn_dim": 384,
        "text_dim": 32,
        "text_len": 8,
        "freq_dim": 32,
    },
    "small": {
        "num_layers": 4,
        "num_attention_heads": 3,
        "attention_head_dim": 128,
        "ffn_dim": 2240,
        "text_dim": 1024,
        "text_len": 128,
    },
}
_PUBLISHED = {"wan-1.3b": "wan2.1-t2v-1.3b", "wan-14b": "wan2.1-t2v-14b"}
_PIXELS = {"tiny": (64, 256), "small": (240, 416)}
_PUBLISHED_PIXELS = (480, 832)
Module = TypeVar("Module", bound=nn.Module)
_RANKS = {"tiny": 4, "small": 4}  # of LoRAs
_PUBLISHED_RANK = 16


@dataclass(frozen=True)
class ModelSize:
    """What models of one benchmark have in common.

    Attributes:
        sizes: keyword arguments of the transformer, without the plan.
        layers: number of them.
        rank: of the LoRAs of hybrid layers.
        height, width: of the latents.
    """

    sizes: dict[str, Any]
    layers: int
    rank: int
    height: int
    width: int

    @classmethod
    def of(cls, options: ModelOptions) -> "ModelSize":
        """Of a preset, with what was asked for in its place.

        Raises:
            ConfigError: a height or width that is no whole number of tokens.
        """
        own = _OWN.get(options.preset)
        sizes = dict(own if own is not None else PRESETS[_PUBLISHED[options.preset]])
        layers = sizes.pop("num_layers")
        pixels = _PIXELS.get(options.preset, _PUBLISHED_PIXELS)
        height, width = (
            _latent(name, asked or usual)
            for name, asked, usual in zip(("height", "width"), (options.height, options.width), pixels, strict=True)
        )
        rank = _RANKS.get(options.preset, _PUBLISHED_RANK)
        return cls(sizes, options.layers or layers, rank, height, width)

    def config(self, plan: str, **changes: Any) -> dict[str, Any]:
        """The transformer's whole configuration with this plan."""
        ranks = {"state_rank": self.rank, "ffn_rank": self.rank} if plan.strip("S") else {}
        return {"layer_plan": plan, **self.sizes, **ranks, **changes}


def _latent(name: str, pixels: int) -> int:
    step = 2 * LATENT_STRIDE
    if pixels % step:
        nearest = max(step, round(pixels / step) * step)
        raise ConfigError(f"The {name} is a multiple of {step} pixels; got {pixels}, use {nearest} for example.")
    return pixels // LATENT_STRIDE


def hybrid_plan(layers: int, share: float) -> str:
    """A plan with this share of hybrid layers, rounded, its softmax layers spread evenly.

    >>> hybrid_plan(4, 0.75), hybrid_plan(8, 0.5)
    ('HHSH', 'HSHSHSHS')
    """
    softmax = layers - round(share * layers)
    kept = {int((i + 0.5) * layers / softmax) for i in range(softmax)}
    return plan_of([i for i in range(layers) if i not in kept], layers)


def random_model(
    config: dict[str, Any], dtype: torch.dtype, device: torch.device | str, *, seed: int = 0
) -> CausalWanTransformer3DModel:
    """A model whose every weight is random, LoRAs and gates included, of a size that keeps numbers in range."""
    with torch.device("meta"):
        model = cast_model(CausalWanTransformer3DModel(**config), dtype)
    return random_weights(model, device, seed=seed)


def random_weights(
    module: Module, device: torch.device | str, *, dtype: torch.dtype | None = None, seed: int = 0
) -> Module:
    """A module from the meta device on ``device``, its parameters drawn; gains are 1, biases 0.

    Args:
        dtype: of all parameters; None: as they are.
    """
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            # Not ``to_empty``, which does not take fake tensors.
            own = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device)
            setattr(owner, name, nn.Parameter(own, requires_grad=False))
    draw = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(-2.0, 1.0, generator=draw)
        elif name.endswith("dt_bias"):
            parameter.uniform_(-6.0, -2.0, generator=draw)
        elif parameter.numel() == max(parameter.shape, default=1):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draw)
    return module.eval()

"""Small things that many tests build."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arl2.attention.lora import LoRA
from arl2.evaluation.goldens import packaged_goldens
from arl2.model.transformer import CausalWanTransformer3DModel

# The full golden folders lie beside a developer's checkout; a clone has the packaged set alone.
SHARED_GOLDENS = Path(os.environ.get("ARL2_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))

needs_shared_goldens = pytest.mark.skipif(
    not SHARED_GOLDENS.is_dir(),
    reason="the full golden folders are not beside this clone (the packaged set still runs)",
)

# How far apart, by ``relative``, the same numbers may be if they are summed in another order. Libraries choose kernels
# by shape, thread count and processor, so a clip and its pieces, a batch and its samples, or diffusers and this package
# share bits on one machine and not on the next. Measured for the tiny Wan VAEs: 5e-7 in float32; in bfloat16 5e-3, its
# distance from float64. An error of 0.01 in the latents shows as 2e-4. Equal bits are asked for only where one
# computation runs twice: resumed, forked, saved and loaded, or streamed in the same pieces.
ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2}


def packaged_cases(folder: Path, *names: str) -> Path:
    """A copy of the packaged golden folder that has the models of these names alone; all without names."""
    shutil.copytree(packaged_goldens(), folder)
    for path in folder.glob("rollout_*.safetensors") if names else ():
        if path.stem.removeprefix("rollout_") not in names:
            path.unlink()
    return folder


def generator(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers that depend on the seed alone."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def tiny_config(plan: str = "HS", **changes: Any) -> dict[str, Any]:
    """Sizes of a model that runs in milliseconds; the two axes of everything differ, so that none is swapped."""
    sizes = {
        "layer_plan": plan,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 40,
        "in_channels": 3,
        "out_channels": 3,
        "freq_dim": 16,
        "text_dim": 10,
        "text_len": 5,
        "block_frames": 2,
        "state_rank": 2 if "H" in plan else 0,
        "ffn_rank": 2 if "H" in plan else 0,
    }
    return {**sizes, **changes}


def tiny_model(plan: str = "HS", seed: int = 0, **changes: Any) -> CausalWanTransformer3DModel:
    """A tiny model whose every parameter is random, low-rank changes and gates included."""
    model = CausalWanTransformer3DModel(**tiny_config(plan, **changes))
    draw = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-2.0, 1.0, generator=draw)
            elif name.endswith("dt_bias"):
                parameter.uniform_(-3.0, 0.0, generator=draw)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=draw)
            else:
                parameter.normal_(0, 1.2 * parameter[0].numel() ** -0.5, generator=draw)
    return model.eval()


def effective_weights(model: CausalWanTransformer3DModel) -> dict[str, Tensor]:
    """The state dict with every LoRA as it acts: ``B`` times ``alpha / rank``. Files carry a LoRA at other alphas."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            weights[f"{name}.B"] = module.scale * module.B.detach()
    return weights


def same_effect(one: CausalWanTransformer3DModel, other: CausalWanTransformer3DModel) -> bool:
    """Whether all weights are equal, those of LoRAs up to the rounding of their scale."""
    first, second = effective_weights(one), effective_weights(other)
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=1e-6, atol=0) for name in first
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Frobenius distance over the norm of ``theirs``."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))

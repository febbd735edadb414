"""What a recipe will take of its device, read off names, shapes and file sizes: nothing is loaded."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from arl2.checkpoints.conversion import config_after
from arl2.checkpoints.load import transformer_config
from arl2.geometry import latent_frames_of
from arl2.pipeline.assemble import ORIGINAL_TEXT, ORIGINAL_VAE, Recipe
from arl2.pipeline.budget import GenerationJob, MemoryPlan, plan_memory
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, parameters_of, wan_decoder
from arl2.rollout.settings import read_json

# The VAE of the first release has no config beside it; these are its sizes.
_WAN21_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}


def plan_recipe(
    recipe: Recipe,
    *,
    num_frames: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    tiny_decoder: bool = False,
    hybrid_layers: Sequence[int] | None = None,
    weights_branch: str = "auto",
    device: str = "cpu",
) -> MemoryPlan:
    """Plan the memory of a generation, phase by phase.

    Args:
        recipe: from ``find_recipe``.
        num_frames: video frames; None: as the settings say.
        batch: videos at once.
        dtype: of computing.
        tiny_decoder: decode with the tiny decoder.
        hybrid_layers, weights_branch: as for ``assemble_pipeline``.
        device: where the text encoder leaves once the prompt is read; on a CPU it has nowhere to go.

    Raises:
        CheckpointError: files that are missing or damaged.
        ConfigError, GeometryError: a model or a picture that cannot be.
    """
    settings = recipe.settings
    config = transformer_config(recipe.weights or recipe.base, weights=weights_branch, **recipe.model)
    if hybrid_layers:
        config = config_after(config, hybrid_layers)
    decoder = TINY_DECODER if tiny_decoder else _wan_decoder(recipe.base)
    asked = settings.num_frames if num_frames is None else num_frames
    first = settings.first_block_frames or config["block_frames"]
    factor = decoder.temporal_factor
    latent_frames = latent_frames_of(0, 1 + factor * math.ceil((asked - 1) / factor), factor)
    later = max(0, latent_frames - first)
    work = GenerationJob(
        frames=first + config["block_frames"] * math.ceil(later / config["block_frames"]),
        batch=batch,
        height=settings.height,
        width=settings.width,
        window=config.get("window"),
        sink=config.get("sink", 0),
        sink_positions=config.get("sink_positions", "absolute"),
        first_block_frames=settings.first_block_frames,
        guided=settings.guidance_scale != 1.0,
        dtype=dtype,
        text_encoder="stays" if device.startswith("cpu") else "leaves",
    )
    return plan_memory(config, work, text_encoder_parameters=_text_encoder_parameters(recipe.base), decoder=decoder)


def _wan_decoder(base: Path) -> DecoderFootprint:
    if (base / "vae").is_dir():
        return wan_decoder(read_json(base / "vae" / "config.json"), parameters_of(base / "vae"))
    return wan_decoder(_WAN21_VAE, parameters_of(base / ORIGINAL_VAE))


def _text_encoder_parameters(base: Path) -> int:
    folder = base / "text_encoder"
    return parameters_of(folder if folder.is_dir() else base / ORIGINAL_TEXT)

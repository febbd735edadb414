"""The memory that published parts will take of their device, from names, shapes and file sizes: nothing is loaded."""

from pathlib import Path

import torch

from arl2.files.plain import read_json
from arl2.pipeline.budget import GenerationJob, MemoryPlan, plan_memory
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, parameters_of, wan_decoder
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.resolve import ResolvedSource
from arl2.rollout.frames import plan_frames

# Files of the first release's folder (Wan-AI/Wan2.1-T2V-1.3B); the diffusers repository has folders instead.
ORIGINAL_VAE, ORIGINAL_TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
# The VAE of the first release has no config beside it; these are its sizes.
_WAN21_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}


def plan_source(
    source: ResolvedSource,
    options: SamplingOptions | None = None,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> MemoryPlan:
    """Plan the memory of a generation from published parts, phase by phase.

    Args:
        source: with a base folder.
        options: what is sampled; None: as the settings say.
        batch: videos at once.
        dtype: of computing.
        device: where the text encoder is offloaded from once the prompt is embedded; on a CPU it stays.

    Raises:
        CheckpointError: files that are missing or damaged.
        ConfigError, GeometryError: a model or a size that cannot be.
    """
    assert source.base is not None  # a saved pipeline is not planned
    options = options or SamplingOptions()
    settings, config = options.over(source.settings), source.config
    decoder = TINY_DECODER if source.decoder is not None else _wan_decoder(source.base)
    plan = plan_frames(
        settings.num_frames,
        temporal_factor=decoder.temporal_factor,
        block_frames=config["block_frames"],
        first_block_frames=settings.first_block_frames,
    )
    work = GenerationJob(
        frames=plan.latent_frames,
        batch=batch,
        height=settings.height,
        width=settings.width,
        window=settings.window,
        sink=config.get("sink", 0) if options.sink is None else options.sink,
        sink_positions=options.sink_positions or config.get("sink_positions", "absolute"),
        first_block_frames=settings.first_block_frames,
        guided=settings.guidance_scale != 1.0,
        dtype=dtype,
        text_encoder="stays" if device.startswith("cpu") else "leaves",
    )
    return plan_memory(config, work, text_encoder_parameters=_text_encoder_parameters(source.base), decoder=decoder)


def _wan_decoder(base: Path) -> DecoderFootprint:
    if (base / "vae").is_dir():
        return wan_decoder(read_json(base / "vae" / "config.json"), parameters_of(base / "vae"))
    return wan_decoder(_WAN21_VAE, parameters_of(base / ORIGINAL_VAE))


def _text_encoder_parameters(base: Path) -> int:
    folder = base / "text_encoder"
    return parameters_of(folder if folder.is_dir() else base / ORIGINAL_TEXT)

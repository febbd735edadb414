"""The memory that a model will take of its device, from names, shapes and file sizes: nothing is loaded."""

from pathlib import Path

import torch

from arl2.files.plain import read_json
from arl2.pipeline import folder as saved
from arl2.pipeline.budget import GenerationJob, MemoryPlan, plan_memory
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, parameters_of, wan_decoder
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.parts import TEXT_ENCODER, find_parts
from arl2.pipeline.resolve import ResolvedSource
from arl2.rollout.frames import plan_frames

_WAN_CODEC, _UMT5 = "AutoencoderKLWan", "umt5"  # as saved folders name them
# A single file of the VAE has no config beside it; these are the sizes of Wan 2.1's.
_WAN21_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}


def can_plan(source: ResolvedSource) -> bool:
    """Whether codec and text encoder are of kinds whose memory is known: Wan's VAE or a tiny decoder, and UMT5."""
    if source.folder is None:
        return source.is_published
    if source.vae is None and read_json(source.folder.codec / "config.json").get("_class_name") != _WAN_CODEC:
        return False
    return source.text_encoder is not None or saved.text_name(source.folder) == _UMT5


def plan_source(
    source: ResolvedSource,
    options: SamplingOptions | None = None,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    ranks: int = 1,
    graphs: bool = False,
) -> MemoryPlan:
    """Plan the memory of a generation, phase by phase.

    Args:
        source: one that :func:`can_plan`.
        options: what is sampled; None: as the settings say.
        batch: videos at once.
        dtype: of computing.
        device: where the text encoder is offloaded from once the prompt is embedded; on a CPU it stays.
        ranks: processes that share a stream, each with a device of its own.
        graphs: passes are recorded as CUDA graphs.

    Raises:
        CheckpointError: files that are missing or damaged.
        ConfigError, GeometryError: a model or a size that cannot be.
    """
    vae, text_encoder = _parts(source)
    options = options or SamplingOptions()
    settings, config = options.over(source.settings), source.config
    decoder = TINY_DECODER if source.decoder is not None else _wan_decoder(vae)
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
        ranks=ranks,
        graphs=graphs,
    )
    return plan_memory(config, work, text_encoder_parameters=parameters_of(text_encoder), decoder=decoder)


def _parts(source: ResolvedSource) -> tuple[Path, Path]:
    """Where the VAE and the text encoder are."""
    if source.folder is None:
        parts = find_parts(source.base, vae=source.vae, text_encoder=source.text_encoder)
        return parts.vae, parts.text_encoder
    return source.vae or source.folder.codec, source.text_encoder or source.folder.text / TEXT_ENCODER


def _wan_decoder(vae: Path) -> DecoderFootprint:
    sizes = read_json(vae / "config.json") if vae.is_dir() else _WAN21_VAE
    return wan_decoder(sizes, parameters_of(vae))

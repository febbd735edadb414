"""What a conversion keeps and what it costs, measured of one model: prompts, memory through occlusions, bytes, time."""

import statistics
from typing import Any

import torch

from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import SeededNoise
from arl2.shapes.evaluation.occlusion import clip_length, score_occluded
from arl2.shapes.evaluation.score import WorldScore, score_model
from arl2.streams.request import Window

# Blocks whose median time stands for a video's last one.
_BLOCKS_BESIDE = 5


def plain_score(score: WorldScore) -> dict[str, Any]:
    """Shares by attribute, ``flicker`` and ``stutter``."""
    return {
        "shares": {name: share.to_mapping() for name, share in score.shares.items()},
        **score.steadiness.to_mapping(),
    }


def measure_prompts(
    pipe: ARL2Pipeline, *, prompts: int, seed: int, num_frames: int, window: Window = "settings"
) -> dict[str, Any]:
    """As :func:`plain_score`, the fixed prompts of a seed; ``right`` of each: whether all is right, None if unknown."""
    score = score_model(pipe, prompts=prompts, seed=seed, num_frames=num_frames, window=window)
    return {**plain_score(score), "right": list(score.right)}


def measure_memory(
    pipe: ARL2Pipeline, *, hidden: int, clips: int, seed: int, window: Window = "settings"
) -> dict[str, Any]:
    """Share of clips whose object comes back in its colour from behind a moving wall; ``truth`` is of true renders.

    Args:
        hidden: video frames that the object is out of sight.
    """
    kept = score_occluded(
        pipe,
        clips=clips,
        seed=seed,
        hidden=hidden,
        num_frames=clip_length(pipe, hidden),
        walls="moving",
        window=window,
    )
    return {
        who: {name: share.to_mapping() for name, share in shares.items()}
        for who, shares in (("model", kept.model), ("truth", kept.truth))
    }


@torch.no_grad()
def measure_stream(
    pipe: ARL2Pipeline, *, video_frames: tuple[int, ...], repeats: int = 3, window: Window = "settings"
) -> dict[str, Any]:
    """One stream's memory and time, without text part and decoder.

    Returns:
        By number of video frames, as text: ``memory_bytes``, of what the stream remembers then, and
        ``block_seconds``: the median of the last few blocks before, denoising and clean pass.
    """
    settings, model = pipe.settings, pipe.transformer
    seen = settings.window if window == "settings" else window
    height, width = settings.height // LATENT_STRIDE, settings.width // LATENT_STRIDE
    lengths = {pipe.plan_frames(number).latent_frames: number for number in video_frames}
    text = torch.zeros(1, model.config.text_len, model.config.text_dim, dtype=torch.float32)
    seconds: dict[int, list[float]] = {number: [] for number in video_frames}
    sizes: dict[int, int] = {}
    for _ in range(repeats):
        memory = model.allocate_memory(batch=1, height=height, width=width, window=seen)
        recent: list[float] = []
        for block in generate_blocks(
            model,
            text,
            noise=SeededNoise([0]),
            sampler=settings.sampler(),
            height=height,
            width=width,
            frames=max(lengths),
            first_block_frames=settings.first_block_frames,
            context_noise=settings.context_noise,
            memory=memory,
        ):
            recent = [*recent, block.denoise_seconds + block.commit_seconds][-_BLOCKS_BESIDE:]
            if block.frames.stop in lengths:
                number = lengths[block.frames.stop]
                seconds[number] += recent
                sizes[number] = sum(tensor.nbytes for tensor in memory.views().values())
    return {
        str(number): {"memory_bytes": sizes[number], "block_seconds": statistics.median(seconds[number])}
        for number in video_frames
    }

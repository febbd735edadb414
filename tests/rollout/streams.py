"""Streams that tests make, small enough for many of them, and what their blocks must be."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.streams.stream import Stream
from pipeline.stand_in import SETTINGS, stand_in_pipeline

PROMPT, OTHER = "a red circle moves right on navy", "a blue box bounces"
SMALL = replace(SETTINGS, height=32, width=32)
GUIDED = replace(SMALL, solver="euler", solver_steps=2, guidance_scale=2.0, negative_prompt="yellow")


@functools.cache
def small_pipeline(plan: str = "HS", guided: bool = False) -> ARL2Pipeline:
    """Blocks of 3 latent frames, window 9, pictures of 32 x 32."""
    return stand_in_pipeline(plan, GUIDED if guided else SMALL)


def take(stream: Stream, blocks: int) -> list[VideoBlock]:
    """The next blocks."""
    return [next(stream) for _ in range(blocks)]


@functools.cache
def uninterrupted(plan: str, guided: bool, blocks: int, **asked: Any) -> tuple[VideoBlock, ...]:
    """What a stream gives that nobody disturbs."""
    return tuple(take(small_pipeline(plan, guided).stream(PROMPT, seed=3, **asked), blocks))


def same_bits(one: VideoBlock, other: VideoBlock) -> bool:
    """Latents, pictures and place."""
    places = [(block.index, block.frames, block.first_video_frame) for block in (one, other)]
    return places[0] == places[1] and torch.equal(one.latents, other.latents) and torch.equal(one.video, other.video)


def latents_of(blocks: list[VideoBlock] | tuple[VideoBlock, ...]) -> Tensor:
    """All of them, along time."""
    return torch.cat([block.latents for block in blocks], dim=2)

"""``ARL2_MINIATURE=1``: every command at a size that takes seconds, to try out a list of commands before the real run.

Videos have few frames and one denoising step, models that are not embedded a picture of 32 x 48 pixels, streams an end;
training and its clips are dry runs or two prompts, benchmarks take their tiny preset. Which files are
read and written stays as it is.
"""

import os
from dataclasses import replace
from typing import Any

from arl2.cli.evaluation import Eval
from arl2.cli.generate import Generate
from arl2.cli.options import Command
from arl2.cli.rollouts import Rollouts
from arl2.cli.sensitivity import Sensitivity
from arl2.cli.shapes import Score
from arl2.cli.stream import Stream
from arl2.cli.train import Train
from arl2.evaluation.bench.options import BenchOptions, DecodeOptions, ModelOptions
from arl2.model.registry import CARDS
from arl2.pipeline.options import ModelSource, SamplingOptions

VARIABLE = "ARL2_MINIATURE"
_FRAMES, _HEIGHT, _WIDTH, _PROMPTS = 9, 32, 48, 2
# A resumed or an extended video is longer than what it begins with.
_MORE_FRAMES = 33


def asked() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def miniature(command: Command) -> Command:
    """The same command, small."""
    if isinstance(command, Stream):
        if command.saving.resume is not None:
            sampling = replace(command.sampling, num_frames=_FRAMES + 3)
        else:
            sampling = _small(command.sampling, command.source, _MORE_FRAMES)
        return replace(command, forever=False, seconds=None, sampling=sampling)
    if isinstance(command, Generate):
        frames = _FRAMES if command.extend is None else _MORE_FRAMES
        published = replace(command.published, num_output_frames=None)
        return replace(command, published=published, sampling=_small(command.sampling, command.source, frames))
    if isinstance(command, Rollouts):
        changes: dict[str, Any] = {"latent_frames": None, "batch": 1}
        if command.shapes_prompts is not None:
            changes["shapes_prompts"] = _PROMPTS
        sampled = command.videos is None and not command.scenes.real
        sampling = _small(command.sampling, command.source, _FRAMES)
        sampling = sampling if sampled else replace(sampling, steps=None, first_block_candidates=None)
        return replace(command, **changes, sampling=sampling)
    if isinstance(command, Score):
        return replace(command, count=_PROMPTS, sampling=_small(command.sampling, command.source, _MORE_FRAMES))
    if isinstance(command, Eval):
        small = replace(command.sampling, num_frames=_MORE_FRAMES, steps=1, first_block_candidates=1)
        return replace(command, count=_PROMPTS, seeds=1, hidden="4", sampling=small)
    if isinstance(command, BenchOptions):
        return _small_bench(command)
    if isinstance(command, Sensitivity):
        return replace(command, limit=_PROMPTS)
    return replace(command, dry_run=True) if isinstance(command, Train) else command


def _small_bench(command: Any) -> Command:
    changes: dict[str, Any] = {"repeats": 1}
    if isinstance(command, ModelOptions):
        changes |= {"preset": "tiny", "layers": None, "height": None, "width": None}
    if isinstance(command, DecodeOptions):
        changes |= {"base_dim": 8, "blocks": 2, "height": _HEIGHT, "width": _WIDTH}
    return replace(command, **changes)


def _small(sampling: SamplingOptions, source: ModelSource, frames: int) -> SamplingOptions:
    small = replace(sampling, num_frames=frames, steps=1, first_block_candidates=1)
    card = CARDS.get(source.name)
    if card is not None and card.kind == "embedded":
        return small
    published = card is not None or source.weights is not None or source.base is not None or source.config is not None
    return replace(small, height=_HEIGHT, width=_WIDTH) if published else small

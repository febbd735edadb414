"""A tiny softmax pipeline to convert, random clips for it, and the settings of short runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.pipeline.stand_in import stand_in_pipeline
from torch import Tensor

from arl2.training.clips.dataset import Clip
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.writing import ClipWriter
from arl2.training.conversion.align import AlignConfig, AlignTask
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.distill import DistillConfig, DistillTask
from arl2.training.conversion.students import load_teacher
from arl2.training.engine.loop import LoopConfig

CLIPS, FRAMES, TEXT_WIDTH = 8, 9, 10


def teacher_folder(folder: Path, plan: str = "SS") -> Path:
    """A random teacher with a window shorter than the clips, so that every part of its attention is met."""
    if not folder.exists():
        pipe = stand_in_pipeline(plan)
        pipe.transformer.register_to_config(window=6)
        pipe.save_pretrained(folder)
    return folder


class RandomClips:
    """Random latents and prompts, by number."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(CLIPS, 3, FRAMES, 8, 8, generator=draw)
        self.text = torch.randn(CLIPS, 4, TEXT_WIDTH, generator=draw)

    def __len__(self) -> int:
        return CLIPS

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return (3, FRAMES, 8, 8)

    @property
    def text_width(self) -> int:
        return TEXT_WIDTH

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        chosen = list(indices)
        return self.latents[chosen], self.text[chosen], [f"a red circle {i}" for i in chosen]


def clips_folder(folder: Path, clips: RandomClips | None = None) -> Path:
    """The same clips as ``arl2 rollouts`` leaves them: two shards."""
    clips = clips or RandomClips()
    writer = ClipWriter(
        folder, ClipIndex(clips=CLIPS, shard_clips=5, latents=clips.latent_shape, text_width=TEXT_WIDTH)
    )
    for shard in writer.missing():
        writer.write(
            shard,
            [Clip(clips.latents[i], clips.text[i], "a red circle", i) for i in writer.index.clips_of(shard)],
        )
    return folder


def loop(**changes: Any) -> LoopConfig:
    settings = {"steps": 6, "warmup_steps": 2, "learning_rate": 5e-3, "checkpoint_every": 2, "log_every": 1}
    return LoopConfig(**{**settings, "evaluate_every": 100, "batches_per_step": 2, **changes})


def align_config(folder: Path, **changes: Any) -> AlignConfig:
    settings = {"loop": loop(), "teacher": str(teacher_folder(folder / "teacher")), "frames": (FRAMES,)}
    short = {"batch_frames": 2 * FRAMES, "held_out": 2, "picture_clips": 1, "picture_frames": 6}
    return AlignConfig(**{**settings, **short, **changes})


def distill_config(folder: Path, **changes: Any) -> DistillConfig:
    settings = {"loop": loop(), "teacher": str(teacher_folder(folder / "teacher")), "frames": (6, FRAMES), "plan": "HS"}
    short = {"batch_frames": 2 * FRAMES, "held_out": 2, "picture_clips": 1, "picture_frames": 6}
    ranks = {"state_rank": 2, "ffn_rank": 2, "on_policy_share": 0.5, "evaluation_rollouts": 1}
    return DistillConfig(**{**settings, **short, **ranks, **changes})


def task_of(config: AlignConfig | DistillConfig) -> AlignTask | DistillTask:
    """The task, on random clips."""
    model = load_teacher(config.teacher, device="meta").model
    clips = TrainingClips([RandomClips()], held_out=config.held_out, model=model, device=torch.device("cpu"))
    return AlignTask(config, clips=clips) if isinstance(config, AlignConfig) else DistillTask(config, clips=clips)

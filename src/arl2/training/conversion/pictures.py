"""Rollouts of a student beside the teacher's, with the same prompts and noise: latents, distance, contact sheet."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.float64 import float64_device
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import load_codec
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.batches import ClipBatch
from arl2.training.conversion.students import Teacher
from arl2.video.pixels import to_bytes
from arl2.video.sheet import LabelledClip, contact_sheet


@dataclass(frozen=True)
class RolloutSpec:
    """How to roll out: how the model is sampled, latent size, length, and the first sample's seed."""

    settings: GenerationSettings
    height: int
    width: int
    frames: int
    seed: int = 0


@torch.no_grad()
def roll_out(
    model: CausalWanTransformer3DModel,
    text: Float[Tensor, "batch words text"],
    spec: RolloutSpec,
    *,
    known: Float[Tensor, "batch channels known height width"] | None = None,
) -> Float[Tensor, "batch channels frames height width"]:
    """Latents that a model generates with its own memory, conditioning frames included; without guidance.

    Sample ``i`` has the noise of seed ``spec.seed + i``. Latents come out in float32, whatever is computed in.
    """
    blocks = generate_blocks(
        model,
        text,
        noise=SeededNoise.for_batch(spec.seed, len(text)),
        sampler=replace(spec.settings, guidance_scale=1.0).sampler(),
        height=spec.height,
        width=spec.width,
        frames=spec.frames,
        known=known,
        first_block_frames=spec.settings.first_block_frames,
        context_noise=spec.settings.context_noise,
    )
    made = [block.latents.float() for block in blocks]
    return torch.cat(made if known is None else [known.to(made[0]), *made], dim=2)


def latent_distance(
    ours: Float[Tensor, "batch channels frames height width"],
    theirs: Float[Tensor, "batch channels frames height width"],
) -> float:
    """How far apart rollouts are: the norm of the difference over the norm of ``theirs``, the mean over samples."""
    where = float64_device(theirs.device)
    difference, whole = (x.to(where).double().flatten(1).norm(dim=1) for x in (ours - theirs, theirs))
    return float((difference / whole).mean())


def comparison_sheet(
    teacher: Teacher,
    student: CausalWanTransformer3DModel,
    clips: ClipBatch,
    *,
    frames: int,
    path: Path,
    settings: GenerationSettings,
) -> None:
    """A contact sheet: for each prompt the teacher's rollout, and below it the student's with the same noise.

    ``settings`` say how the student is sampled.
    """
    codec = load_codec(teacher.folder, dtype=torch.float32)
    rows: list[LabelledClip] = []
    height, width = clips.latents.shape[3:]
    models = {"teacher": (teacher.model, teacher.settings), "student": (student, settings)}
    rollouts = {
        who: roll_out(model, clips.text, RolloutSpec(sampled, height, width, frames))
        for who, (model, sampled) in models.items()
    }
    for i, caption in enumerate(clips.captions):
        for who, latents in rollouts.items():
            with torch.no_grad():
                video = codec.decode(latents[i : i + 1].cpu())[0]
            rows.append((f"{who}: {caption}", to_bytes(video)))
    contact_sheet(rows, every=codec.temporal_factor, path=path)

"""The suite ``teacher``: the same prompts and noise through student and teacher. Where does the student leave?

Twice: freely, where every block builds on the student's own past, and after the teacher's past, where each block is one
step away from it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.evaluation.suites.strips import filmstrip
from arl2.evaluation.suites.suite import Item, Load, Measured, Metric, Subject, Suite, SuiteOptions, prompted_items
from arl2.geometry import count_blocks
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.options import SamplingOptions
from arl2.video.pixels import to_bytes

_BLOCK = "number of the block"
Latents = Float[Tensor, "batch channels frames height width"]


class TeacherSuite(Suite):
    """Distances of a student's latents and pixels from its teacher's, block by block."""

    name = "teacher"
    about = "distance of a student from its teacher under the same noise, in latents and pixels, block by block"
    primary = "latents"
    needs_teacher = True
    metrics = (
        Metric("latents", "distance over the norm of the teacher's latents, whole video", "low"),
        Metric("pixels", "mean absolute difference, of 255, whole video", "low"),
        Metric("block_latents", "the same of one block, on the student's own past", "low", _BLOCK),
        Metric("block_pixels", "the same of one block, on the student's own past", "low", _BLOCK),
        Metric("after_teacher", "latents of one block, on the teacher's past", "low", _BLOCK),
    )

    def items(self, options: SuiteOptions) -> tuple[Item, ...]:
        return prompted_items(options)

    @torch.no_grad()
    def measure_model(
        self, subject: Subject, items: Sequence[Item], options: SuiteOptions, load: Load
    ) -> list[Measured]:
        assert options.teacher is not None  # ``check`` requires one
        teacher, student = load(options.teacher), load(subject)
        _check_pair(teacher, student, subject)
        num_frames = options.num_frames or teacher.settings.num_frames
        sampled = _sampling(options.teacher, items, num_frames)
        theirs, their_video = _rollout(teacher, items, sampled)
        mine = _sampling(subject, items, num_frames)
        ours, our_video = _rollout(student, items, mine)
        # After given blocks the next one is sampled as a first one is, so the teacher samples it so, too.
        forced = [ours[0], *_after(student, items, mine, theirs)]
        expected = [theirs[0], *_after(teacher, items, sampled, theirs)]
        found = []
        for index in range(len(items)):
            of_teacher, of_student = their_video[index], our_video[index]
            per_block = [_relative(a[index], b[index]) for a, b in zip(ours, theirs, strict=True)]
            after = [_relative(a[index], b[index]) for a, b in zip(forced, expected, strict=True)]
            whole = _relative(torch.cat(ours, 2)[index], torch.cat(theirs, 2)[index])
            pixels = [_pixels(a, b) for a, b in zip(of_student, of_teacher, strict=True)]
            values = {"latents": whole, "pixels": _pixels(torch.cat(of_student, 1), torch.cat(of_teacher, 1))}
            for block in range(len(per_block)):
                values |= {
                    f"block_latents@{block}": per_block[block],
                    f"block_pixels@{block}": pixels[block],
                    f"after_teacher@{block}": after[block],
                }
            frames = to_bytes(torch.cat(of_student, 1))
            _, height, width, _ = frames.shape
            fps = float(student.settings.fps)
            finite = {name: value for name, value in values.items() if torch.isfinite(torch.tensor(value))}
            excluded = dict.fromkeys(values.keys() - finite.keys(), "latents that are NaN or infinite")
            found.append(
                Measured(finite, dict(sorted(excluded.items())), filmstrip(frames), len(frames), height, width, fps)
            )
        return found


def _check_pair(teacher: ARL2Pipeline, student: ARL2Pipeline, subject: Subject) -> None:
    for what, ours, theirs in (
        ("channels", student.transformer.config.in_channels, teacher.transformer.config.in_channels),
        ("latent frames a block", student.block_frames, teacher.block_frames),
        ("first block", student.settings.first_block_frames, teacher.settings.first_block_frames),
        ("height", student.settings.height, teacher.settings.height),
        ("width", student.settings.width, teacher.settings.width),
    ):
        if ours != theirs:
            raise ConfigError(
                f"'{subject.label}' and the teacher cannot be compared: {what} {ours} and {theirs}; give a student of "
                "this teacher."
            )


def _sampling(subject: Subject, items: Sequence[Item], num_frames: int) -> SamplingOptions:
    """Of one candidate: the best of several would compare choices, not models."""
    own = subject.sampling
    candidates = 1 if own.first_block_candidates is None else own.first_block_candidates
    seeds = tuple(item.seed for item in items)
    return replace(own, num_frames=num_frames, seed=seeds, first_block_candidates=candidates)


def _rollout(
    pipe: ARL2Pipeline, items: Sequence[Item], sampling: SamplingOptions
) -> tuple[list[Latents], list[list[Tensor]]]:
    """Latents by block; videos by item, a part [3, frames, height, width] for each block."""
    latents: list[Latents] = []
    videos: list[list[Tensor]] = [[] for _ in items]
    with pipe.stream([item.prompt for item in items], options=sampling, rewind_blocks=0) as stream:
        assert stream.plan is not None
        total = count_blocks(stream.plan.latent_frames, pipe.block_frames, pipe.settings.first_block_frames)
        for _ in range(total):
            block = stream.latents_next()
            latents.append(block.latents.float().cpu())
            shown = stream.decode(block).video.float().clamp(-1, 1).cpu()
            for one, part in zip(videos, shown, strict=True):
                one.append(part)
    return latents, videos


def _after(pipe: ARL2Pipeline, items: Sequence[Item], sampling: SamplingOptions, past: list[Latents]) -> list[Latents]:
    """Each block but the first, sampled after the blocks of another model."""
    prompts = [item.prompt for item in items]
    single = replace(sampling, first_block_candidates=None)
    found = []
    for number in range(1, len(past)):
        known = torch.cat(past[:number], dim=2).to(pipe.device)
        with pipe.stream(prompts, options=single, known=known, rewind_blocks=0) as stream:
            for _ in range(number):
                stream.latents_next()
            found.append(stream.latents_next().latents.float().cpu())
    return found


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def _pixels(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().mean() * 127.5).item()

"""Stage 1: every hybrid layer learns to give what the softmax layer in its place gives, each on its own."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from arl2.attention.layout import ClipLayout
from arl2.errors import GeometryError
from arl2.geometry import FrameRange, split_blocks
from arl2.model.layer import AttentionCall, TransformerLayer
from arl2.model.passes import TeacherForcing
from arl2.training.batches import ClipBatch, TrainingClips, check_frames, open_clips
from arl2.training.loop import LoopConfig
from arl2.training.noising import NoisyClips, SamplingLevels, noised
from arl2.training.pictures import draw_beside_teacher
from arl2.training.precision import compute_beside_masters, dtype_of
from arl2.training.processes import Processes
from arl2.training.sharding import loading_device, shard_model, whole_models
from arl2.training.students import (
    Plan,
    StudentSpec,
    Window,
    export_student,
    hybrid_layers,
    load_teacher,
    make_student,
    student_settings,
)
from arl2.training.task import Batch, Loss, ParameterGroup
from arl2.training.trainable import groups_of, unfreeze
from arl2.training.watching import watched_attention

EVALUATION_SEED = 2**40 + 3


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Settings of stage 1.

    Attributes:
        teacher: ``"shapes"``, or the folder of a softmax model's pipeline.
        clips: folders of clips that ``arl2 rollouts`` wrote.
        any_clips: also take clips that were made with another model.
        plan: which layers to align: one letter a layer, or a list of indices; None: all.
        frames: latent frames of a clip; each batch draws one of them. Two blocks or more: in the first block a hybrid
            layer equals the softmax layer.
        batch_frames: latent frames in a batch: so many clips as fit.
        level_share: share of the blocks at exactly one of the sampler's noise levels; the rest fall between them.
        teacher_window: latent frames that the softmax layers see while they are imitated: a number, ``"model"`` or
            ``"all"``. What is exported has the teacher's own window.
        weight_decay: of all that trains but ``A_log`` and ``dt_bias``.
        activation_checkpointing: keep less during the forward pass, and compute it again in the backward pass.
        held_out: clips that are kept for evaluation.
        picture_clips, picture_frames: rollouts in a picture and their latent frames.
    """

    loop: LoopConfig
    teacher: str = "shapes"
    clips: tuple[str, ...] = ()
    any_clips: bool = False
    plan: Plan | None = None
    frames: tuple[int, ...] = (21,)
    batch_frames: int = 84
    level_share: float = 0.5
    teacher_window: Window = "model"
    weight_decay: float = 0.01
    activation_checkpointing: bool = False
    held_out: int = 16
    picture_clips: int = 4
    picture_frames: int = 21

    def student(self) -> StudentSpec:
        """The model that trains."""
        return StudentSpec(self.plan, seed=self.loop.seed)


class AlignTask:
    """Trains the state branches and gates of hybrid layers beside a frozen teacher; a ``Task``.

    Args:
        config: the settings.
        device: of the models and the batches.
        clips: to train on, instead of those of the settings.

    Raises:
        ConfigError, CheckpointError, GeometryError: a teacher, clips or lengths that do not fit.
    """

    def __init__(
        self, config: AlignConfig, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.teacher = load_teacher(
            config.teacher,
            device=loading_device(config.loop.sharding, self.device),
            window=config.teacher_window,
            dtype=dtype_of(config.loop.compute),
        )
        self.student = make_student(self.teacher, config.student())
        self.trained = unfreeze(self.student, 1)
        compute_beside_masters(self.student)
        self.layers = hybrid_layers(self.student.config.layer_plan)
        self.levels = SamplingLevels(self.teacher.settings, config.level_share)
        self.clips = clips or open_clips(
            config.clips,
            held_out=config.held_out,
            teacher=self.teacher,
            name=config.teacher,
            device=self.device,
            any_clips=config.any_clips,
        )
        check_frames(config.frames, self.clips, batch_frames=config.batch_frames)
        for frames in config.frames:
            if len(self._blocks(frames)) < 2:
                raise GeometryError(
                    f"A clip of {frames} latent frames is one block, and in a first block nothing is to be learnt; "
                    "give frames of two blocks or more."
                )

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The stage-1 parameters of the layers that are aligned."""
        return groups_of(self.trained, 1, weight_decay=self.config.weight_decay)

    def shard(self, processes: Processes) -> None:
        """Teacher layer by layer; of the student each self-attention is gathered alone, when it is compared."""
        mesh = processes.mesh(self.device)
        shard_model(self.teacher.model, mesh)
        self.trained = shard_model(self.student, mesh, attention_alone=True)

    @contextmanager
    def whole(self, *, here: bool) -> Iterator[None]:
        """Within: both models whole, where ``here``."""
        shards = self.teacher, self.student
        with whole_models(*shards, here=here) as (self.teacher, self.student):
            try:
                yield
            finally:
                self.teacher, self.student = shards

    def loss(self, batch: Batch) -> Loss:
        """The mean of all layers' ratios; no gradient of one layer reaches another."""
        config, draw = self.config, batch.generator
        frames = config.frames[int(torch.randint(len(config.frames), (1,), generator=draw))]
        clips = self.clips.draw(config.batch_frames // frames, frames, draw)
        ratios = self.ratios(clips, noised(clips.latents, self._blocks(frames), self.levels, draw))
        value = torch.stack(list(ratios.values())).mean()
        return Loss(value, len(clips.latents), {f"ratio_{i}": ratio.detach() for i, ratio in ratios.items()})

    def ratios(self, clips: ClipBatch, noisy: NoisyClips) -> dict[int, Float[Tensor, ""]]:
        """Each layer's :func:`alignment_ratio`, by index: one pass of the teacher feeds them all."""
        calls: dict[int, AttentionCall] = {}
        run = TeacherForcing(noisy.clean, first_block_frames=self.teacher.settings.first_block_frames)
        with torch.no_grad(), watched_attention(self.teacher.model, self.layers, calls.__setitem__):
            self.teacher.model(noisy.noisy, noisy.timestep, clips.text, run=run)
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()):
            return {i: self._ratio(i, calls[i]) for i in self.layers}
        return {i: checkpoint(self._ratio, i, calls[i], use_reentrant=False) for i in self.layers}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Each layer's ratio on the clips held out, always at the same noise, and the median over layers."""
        frames = max(self.config.frames)
        at_once = self.config.batch_frames // frames
        count = len(self.clips.held_out_numbers)
        draw = torch.Generator().manual_seed(EVALUATION_SEED)
        sums = dict.fromkeys(self.layers, 0.0)
        for first in range(0, count, at_once):
            numbers = range(first, min(first + at_once, count))
            clips = self.clips.held_out(numbers, frames)
            ratios = self.ratios(clips, noised(clips.latents, self._blocks(frames), self.levels, draw))
            for i, ratio in ratios.items():
                sums[i] += ratio.item() * len(numbers) / count
        by_layer = {f"held_out_ratio_{i}": value for i, value in sums.items()}
        return {**by_layer, "held_out_ratio_median": statistics.median(sums.values())}

    def export(self, folder: Path) -> None:
        """The pipeline's folder of the model with all aligned layers hybrid: what stage 2 and ``sensitivity`` read."""
        export_student(self.student, self.teacher, folder, settings=student_settings(self.teacher, self.student))

    def draw(self, path: Path) -> None:
        """Rollouts of the model with all aligned layers hybrid, each beside the teacher's."""
        count = min(self.config.picture_clips, len(self.clips.held_out_numbers))
        draw_beside_teacher(
            self.teacher,
            self.student,
            self.clips.held_out(range(count), self.config.picture_frames),
            frames=self.config.picture_frames,
            path=path,
        )

    def _ratio(self, i: int, call: AttentionCall) -> Float[Tensor, ""]:
        layer = self.student.layers[i]
        assert isinstance(layer, TransformerLayer)
        hybrid = layer.self_attention.parallel(call.input, call.rotation, call.layout)
        return alignment_ratio(hybrid, call.output, call.layout)

    def _blocks(self, frames: int) -> tuple[FrameRange, ...]:
        config = self.teacher.model.config
        return split_blocks(frames, config.block_frames, self.teacher.settings.first_block_frames)


def alignment_ratio(
    hybrid: Float[Tensor, "batch tokens width"], softmax: Float[Tensor, "batch tokens width"], layout: ClipLayout
) -> Float[Tensor, ""]:
    """``mean((hybrid - softmax)^2) / mean(softmax^2)`` over all copies of all blocks but the first (spec 4)."""
    begin, _ = layout.span(layout.blocks[1])
    _, end = layout.span(layout.blocks[-1])
    later = [slice(offset + begin, offset + end) for offset in layout.copies()]
    difference = sum((hybrid[:, part].float() - softmax[:, part].float()).square().sum() for part in later)
    size = sum(softmax[:, part].float().square().sum() for part in later)
    return torch.as_tensor(difference / size)

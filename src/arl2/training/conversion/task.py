"""What runs with a teacher share: a frozen softmax model, the student beside it, and clips to compare them on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.geometry import FrameRange, split_blocks
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.batches import ClipBatch, TrainingClips, check_frames, open_clips
from arl2.training.conversion.pictures import comparison_sheet
from arl2.training.conversion.sharding import loading_device, shard_model, whole_models
from arl2.training.conversion.students import (
    Plan,
    StudentSpec,
    Window,
    export_student,
    load_teacher,
    make_student,
    student_settings,
)
from arl2.training.conversion.trainable import Stage, groups_of, unfreeze
from arl2.training.conversion.watching import ShrinkingWindows
from arl2.training.engine.config import check_share
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.noising import NoisyClips, SamplingSigmas, noised
from arl2.training.engine.processes import Processes
from arl2.training.engine.task import COMPUTE_DTYPES, Batch, Loss, ParameterGroup

_EVALUATION_SEED = 2**40 + 3


@dataclass(frozen=True, kw_only=True)
class TeacherStudentConfig:
    """Settings of every run in which a student learns from a teacher.

    Attributes:
        teacher: an embedded model's name, or the folder of a softmax model's pipeline.
        clips: folders of clips that ``arl2 rollouts`` wrote.
        any_clips: also take clips that were made with another model.
        frames: latent frames of a clip, one length a batch.
        batch_frames: latent frames in a batch: as many clips as fit.
        teacher_window: latent frames that the softmax layers of the teacher see: a number, ``"model"`` or ``"all"``.
        weight_decay: of all that trains but ``A_log`` and ``dt_bias``.
        activation_checkpointing: keep less during the forward pass, and compute it again in the backward pass.
        held_out: clips that are kept for evaluation.
        picture_clips: rollouts in a contact sheet.
        picture_frames: latent frames of every rollout that is compared with the teacher's.
    """

    loop: LoopConfig
    teacher: str
    clips: tuple[str, ...] = ()
    any_clips: bool = False
    frames: tuple[int, ...] = (21,)
    batch_frames: int = 84
    teacher_window: Window = "model"
    weight_decay: float = 0.01
    activation_checkpointing: bool = False
    held_out: int = 16
    picture_clips: int = 4
    picture_frames: int = 21


Config = TypeVar("Config", bound=TeacherStudentConfig)


class TeacherStudentTask(ABC, Generic[Config]):
    """Trains a student beside a frozen teacher; a ``Task`` that scales.

    Args:
        config: the settings.
        device: of the models and the batches.
        clips: to train on, instead of those of the settings.

    Raises:
        ConfigError, CheckpointError, GeometryError: a teacher, a student, clips or lengths that do not fit.
    """

    # Whether self-attention runs outside its layer, so that shards of it are gathered on their own.
    attention_alone: ClassVar[bool] = False

    def __init__(
        self, config: Config, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.processes = Processes()  # this one alone, until weights are cut into shards
        self.teacher = load_teacher(
            config.teacher,
            device=loading_device(config.loop.sharding, self.device),
            window=config.teacher_window,
            dtype=COMPUTE_DTYPES[config.loop.compute],
        )
        self.student = self.make_student()
        self.trained = self.unfreeze()
        self.clips = clips or open_clips(
            config.clips,
            held_out=config.held_out,
            teacher=self.teacher,
            name=config.teacher,
            device=self.device,
            any_clips=config.any_clips,
        )
        check_frames(config.frames, self.clips, batch_frames=config.batch_frames)

    @abstractmethod
    def make_student(self) -> CausalWanTransformer3DModel:
        """The model that trains, on the device of the teacher."""

    @abstractmethod
    def unfreeze(self) -> dict[str, nn.Parameter]:
        """Let what trains of the student have gradients, in float32; by name."""

    @abstractmethod
    def student_settings(self) -> GenerationSettings:
        """How the student is sampled, which is exported with it."""

    @abstractmethod
    def parameter_groups(self) -> Sequence[ParameterGroup]: ...

    @abstractmethod
    def loss(self, batch: Batch) -> Loss: ...

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]: ...

    @abstractmethod
    def export(self, folder: Path) -> None: ...

    def shard(self, processes: Processes) -> None:
        """Cut teacher and student into shards, layer by layer."""
        self.processes = processes
        mesh = processes.mesh(self.device)
        shard_model(self.teacher.model, mesh)
        self.trained = shard_model(self.student, mesh, attention_alone=self.attention_alone)

    @contextmanager
    def full_weights(self, *, here: bool) -> Iterator[None]:
        """Within: both models gathered, where ``here``; without shards they are so everywhere."""
        if self.processes.count == 1:
            yield
            return
        shards = self.teacher, self.student
        with whole_models(*shards, here=here) as (self.teacher, self.student):
            try:
                yield
            finally:
                self.teacher, self.student = shards

    def contact_sheet(self, path: Path) -> None:
        """A contact sheet of the student's rollouts, each below the teacher's."""
        frames = self.config.picture_frames
        count = min(self.config.picture_clips, len(self.clips.held_out_numbers))
        clips = self.clips.held_out(range(count), frames)
        comparison_sheet(self.teacher, self.student, clips, frames=frames, path=path, settings=self.student_settings())

    def _sample_clips(self, draw: torch.Generator) -> ClipBatch:
        """A batch of clips of one of the lengths."""
        lengths = self.config.frames
        frames = lengths[int(torch.randint(len(lengths), (1,), generator=draw))]
        return self.clips.sample(self.config.batch_frames // frames, frames, draw)

    def _held_out_clips(self) -> Iterator[ClipBatch]:
        """All clips held out, as many at a time as fit."""
        frames = max(self.config.frames)
        at_once = self.config.batch_frames // frames
        count = len(self.clips.held_out_numbers)
        for first in range(0, count, at_once):
            yield self.clips.held_out(range(first, min(first + at_once, count)), frames)

    def _evaluation_generator(self) -> torch.Generator:
        """The same noise at every evaluation."""
        return torch.Generator().manual_seed(_EVALUATION_SEED)

    def _blocks(self, frames: int) -> tuple[FrameRange, ...]:
        config = self.teacher.model.config
        return split_blocks(frames, config.block_frames, self.teacher.settings.first_block_frames)


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(TeacherStudentConfig, ABC):
    """Settings that both stages of a conversion have, beside those of every run with a teacher.

    Attributes:
        stage: of the conversion; each stage's settings say which they are for, so it is no setting.
        plan: which layers are hybrid: one letter a layer, or a list of indices; None: all.
        state_form: of windowed hybrid layers, what differs from the default form; null: nothing.
        state_horizon: latent frames that states reach back, a multiple of two blocks, so that no stream reads an older
            state than training did; null: no limit, as published.
        own_block_share: share of the training passes, drawn for each layer on its own, in which a windowed hybrid layer
            sees its own block alone, so that its state learns to carry what the window shows otherwise.
        window_lengths: latent frames that a windowed hybrid layer sees in the other training passes, one of these drawn
            for each layer; empty: its own window.
        level_share: share of the blocks at exactly one of the sampler's timesteps; the rest fall between them.
    """

    stage: ClassVar[Stage]

    plan: Plan | None = None
    state_form: Mapping[str, Any] | None = None
    state_horizon: int | None = None
    own_block_share: float = 0.0
    window_lengths: tuple[int, ...] = ()
    level_share: float = 0.5

    def __post_init__(self) -> None:
        check_share("own_block_share", self.own_block_share)

    @property
    def shrinks_windows(self) -> bool:
        """Whether some training passes hide a part of what a window shows otherwise."""
        return bool(self.own_block_share or self.window_lengths)

    @abstractmethod
    def student(self) -> StudentSpec:
        """The model that trains."""


Conversion = TypeVar("Conversion", bound=ConversionConfig)


class ConversionTask(TeacherStudentTask[Conversion], Generic[Conversion]):
    """Trains the new parameters of a student that is made from the teacher; stages add ``loss`` and ``evaluate``."""

    def __init__(
        self, config: Conversion, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        super().__init__(config, device=device, clips=clips)
        self.windows = ShrinkingWindows(self.student)
        self._check_windows()
        self.sigmas = SamplingSigmas(self.teacher.settings, config.level_share)

    def make_student(self) -> CausalWanTransformer3DModel:
        return make_student(self.teacher, self.config.student())

    def unfreeze(self) -> dict[str, nn.Parameter]:
        return unfreeze(self.student, self.config.stage)

    def student_settings(self) -> GenerationSettings:
        return student_settings(self.teacher, self.student)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """What this stage trains."""
        return groups_of(self.student, self.trained, self.config.stage, weight_decay=self.config.weight_decay)

    def export(self, folder: Path) -> None:
        """The student's pipeline folder; of stage 1 it is what stage 2 and ``sensitivity`` read."""
        export_student(self.student, self.teacher, folder, settings=self.student_settings())

    def _shrink_windows(self, batch: Batch) -> None:
        """Some layers' windows, for this pass. They stay so until the next: a backward pass may run layers again."""
        if not self.config.shrinks_windows:
            return
        share, lengths = self.config.own_block_share, self.config.window_lengths
        draw, layers = batch.generator, len(self.windows)
        own_block = torch.rand(layers, generator=draw) < share
        drawn = torch.randint(len(lengths), (layers,), generator=draw).tolist() if lengths else []
        self.windows.shrink(own_block, [lengths[i] for i in drawn] or None)

    def _check_windows(self) -> None:
        config, model = self.config, self.student.config
        given = {"own_block_share": config.own_block_share, "window_lengths": list(config.window_lengths)}
        for name, value in given.items():
            if value and not self.windows.count:
                raise ConfigError(
                    f"{name} is {value}, but no layer of the plan {model.layer_plan} has a window beside a state that "
                    "shows more than the own block; leave it out, or give a plan of other kinds, "
                    'state_form.sees="window" or a longer window.'
                )
        least, most = model.block_frames, model.window
        for length in config.window_lengths:
            if length < least or (most is not None and length > most):
                upper = "the whole past" if most is None else f"the window, {most}"
                raise ConfigError(
                    f"window_lengths has {length}; give latent frames from the own block, {least}, to {upper}."
                )

    def _held_out(self) -> Iterator[tuple[ClipBatch, NoisyClips]]:
        """All clips held out, beside their noisy copies."""
        draw = self._evaluation_generator()
        for clips in self._held_out_clips():
            yield clips, self._noised(clips, draw)

    def _noised(self, clips: ClipBatch, draw: torch.Generator) -> NoisyClips:
        return noised(clips.latents, self._blocks(clips.latents.shape[2]), self.sigmas, draw)

"""Stage 2: the whole hybrid student follows the frozen teacher, on given clips and on what it rolls out itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.geometry import FrameRange, split_blocks
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.align import EVALUATION_SEED
from arl2.training.batches import ClipBatch, TrainingClips, check_frames, open_clips
from arl2.training.level_means import LevelMeans
from arl2.training.loop import LoopConfig
from arl2.training.noising import NoisyClips, SamplingLevels, noised
from arl2.training.pictures import RolloutSpec, draw_beside_teacher, latent_distance, roll_out
from arl2.training.precision import compute_beside_masters, dtype_of
from arl2.training.processes import Processes
from arl2.training.sharding import loading_device, shard_model, whole_models
from arl2.training.students import (
    Plan,
    StudentSpec,
    Window,
    export_student,
    load_teacher,
    make_student,
    student_settings,
)
from arl2.training.task import Batch, Loss, ParameterGroup
from arl2.training.trainable import groups_of, unfreeze
from arl2.training.watching import hidden_states


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of stage 2.

    Attributes:
        teacher: ``"shapes"``, or the folder of a softmax model's pipeline.
        plan: which layers are hybrid: one letter a layer, or a list of indices; None: all.
        aligned: folder of an export of stage 1 that has aligned these layers; None: they begin at their start values.
        clips: folders of clips that ``arl2 rollouts`` wrote.
        any_clips: also take clips that were made with another model.
        state_rank, ffn_rank, low_rank_alpha, ffn_rank_layers: low-rank changes; alpha None is twice the rank.
        frames: latent frames of a clip; each batch draws one of them.
        batch_frames: latent frames in a batch: so many clips as fit.
        teacher_window, student_window: latent frames that softmax layers see: a number, ``"model"`` or ``"all"``. A
            student with a shorter window than its teacher, on clips longer than it, must carry the rest in its states.
        level_share: share of the blocks at exactly one of the sampler's noise levels; the rest fall between them.
        level_buckets, level_decay: of the running means that the loss of each level is divided by.
        on_policy_share: share of the batches whose context the student has rolled out itself.
        on_policy_known: how many first blocks of such a rollout are given; each batch draws one of these.
        hidden_weight, hidden_every: of matching hidden states after every so many layers; weight 0 is none.
        data_weight: of the plain flow-matching loss on the clips (where they are true clips and more is known of them
            than the teacher says); 0 is none.
        weight_decay: of all that trains but ``A_log`` and ``dt_bias``.
        activation_checkpointing: keep less during the forward pass, and compute it again in the backward pass.
        held_out: clips that are kept for evaluation.
        evaluation_rollouts: of those, how many prompts are also rolled out and compared with the teacher's rollouts.
        picture_clips, picture_frames: rollouts in a picture, and latent frames of every rollout that is compared.
    """

    loop: LoopConfig
    teacher: str = "shapes"
    plan: Plan | None = None
    aligned: str | None = None
    clips: tuple[str, ...] = ()
    any_clips: bool = False
    state_rank: int = 16
    ffn_rank: int = 16
    low_rank_alpha: float | None = None
    ffn_rank_layers: Literal["hybrid", "all"] = "hybrid"
    frames: tuple[int, ...] = (21,)
    batch_frames: int = 84
    teacher_window: Window = "model"
    student_window: Window = "model"
    level_share: float = 0.5
    level_buckets: int = 10
    level_decay: float = 0.98
    on_policy_share: float = 0.25
    on_policy_known: tuple[int, ...] = (0, 1)
    hidden_weight: float = 0.0
    hidden_every: int = 2
    data_weight: float = 0.0
    weight_decay: float = 0.01
    activation_checkpointing: bool = False
    held_out: int = 16
    evaluation_rollouts: int = 4
    picture_clips: int = 4
    picture_frames: int = 21

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy_share <= 1:
            raise ConfigError(f"on_policy_share is {self.on_policy_share}; give a share from 0 to 1.")
        if self.hidden_weight < 0 or self.data_weight < 0 or self.hidden_every < 1:
            raise ConfigError("hidden_weight and data_weight must be 0 or more, and hidden_every 1 or more.")
        if not self.on_policy_known or min(self.on_policy_known) < 0:
            raise ConfigError(f"on_policy_known is {list(self.on_policy_known)}; give numbers of blocks from 0.")

    def student(self) -> StudentSpec:
        """The model that trains."""
        return StudentSpec(
            plan=self.plan,
            state_rank=self.state_rank,
            ffn_rank=self.ffn_rank,
            low_rank_alpha=self.low_rank_alpha,
            ffn_rank_layers=self.ffn_rank_layers,
            window=self.student_window,
            aligned=self.aligned,
            seed=self.loop.seed,
        )


class Followed(NamedTuple):
    """One pass of student and teacher over the same noisy clips.

    Attributes:
        student, teacher: flows ``[B, C, F, h, w]``.
        hidden: of each compared layer, the mean square difference over the teacher's mean square.
    """

    student: Float[Tensor, "batch channels frames height width"]
    teacher: Float[Tensor, "batch channels frames height width"]
    hidden: list[Float[Tensor, ""]]


class DistillTask:
    """Trains state branches, gates and low-rank changes of a whole student; a ``Task`` that keeps state.

    Args:
        config: the settings.
        device: of the models and the batches.
        clips: to train on, instead of those of the settings.

    Raises:
        ConfigError, CheckpointError, GeometryError: a teacher, aligned layers, clips or lengths that do not fit.
    """

    def __init__(
        self, config: DistillConfig, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.processes = Processes()
        self.teacher = load_teacher(
            config.teacher,
            device=loading_device(config.loop.sharding, self.device),
            window=config.teacher_window,
            dtype=dtype_of(config.loop.compute),
        )
        self.student = make_student(self.teacher, config.student())
        self.trained = unfreeze(self.student, 2)
        compute_beside_masters(self.student)
        if config.activation_checkpointing:
            self.student.enable_gradient_checkpointing()
        depth = len(self.student.config.layer_plan)
        self.compared = list(range(config.hidden_every - 1, depth, config.hidden_every)) if config.hidden_weight else []
        self.levels = SamplingLevels(self.teacher.settings, config.level_share)
        self.level_means = LevelMeans(config.level_buckets, config.level_decay, self.device)
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
            if max(config.on_policy_known) >= len(self._blocks(frames)) and config.on_policy_share:
                raise ConfigError(
                    f"on_policy_known = {list(config.on_policy_known)} leaves nothing of a clip of {frames} latent "
                    f"frames to roll out: it has {len(self._blocks(frames))} blocks."
                )

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The stage-2 parameters."""
        return groups_of(self.trained, 2, weight_decay=self.config.weight_decay)

    def shard(self, processes: Processes) -> None:
        """Teacher and student, layer by layer.

        Raises:
            ConfigError: clips of one block: they would not reach all that trains, and the processes' gradients of a
                layer must be of one size.
        """
        for frames in self.config.frames:
            if len(self._blocks(frames)) < 2:
                raise ConfigError(
                    f"A clip of {frames} latent frames is one block, which does not reach all that trains; with "
                    'loop.sharding = "full" give frames of two blocks or more.'
                )
        self.processes = processes
        mesh = processes.mesh(self.device)
        shard_model(self.teacher.model, mesh)
        self.trained = shard_model(self.student, mesh)

    @contextmanager
    def whole(self, *, here: bool) -> Iterator[None]:
        """Within: both models whole, where ``here``."""
        shards = self.teacher, self.student
        with whole_models(*shards, here=here) as (self.teacher, self.student):
            try:
                yield
            finally:
                self.teacher, self.student = shards

    def state_tensors(self) -> Mapping[str, Tensor]:
        """The running means of the loss by level."""
        return self.level_means.state_tensors()

    def end_step(self, processes: Processes) -> None:
        """Update them."""
        self.level_means.end_step(processes)

    def loss(self, batch: Batch) -> Loss:
        """How far the student's flow is from the teacher's, every noise level weighing the same, and the options."""
        config, draw = self.config, batch.generator
        frames = config.frames[int(torch.randint(len(config.frames), (1,), generator=draw))]
        clips = self.clips.draw(config.batch_frames // frames, frames, draw)
        on_policy = bool(torch.rand((), generator=draw) < config.on_policy_share)
        # One process's rollout needs weights from all, so all gather if one rolls out.
        if self.processes.count > 1:
            if self.processes.any(on_policy):
                with self.whole(here=on_policy):
                    clips = self._rolled_out(clips, draw) if on_policy else clips
        elif on_policy:
            clips = self._rolled_out(clips, draw)
        noisy = noised(clips.latents, self._blocks(frames), self.levels, draw)
        flows = self.follow(clips, noisy)

        errors = noisy.block_means((flows.student - flows.teacher).square())
        value = self.level_means.divided(errors, noisy.sigma).mean()
        logs = {"flow_error": errors.detach().mean()}
        if flows.hidden:
            hidden = torch.stack(flows.hidden).mean()
            value = value + config.hidden_weight * hidden
            logs["hidden_error"] = hidden.detach()
        if config.data_weight:
            # What the student has rolled out is no data.
            data = torch.zeros_like(value) if on_policy else (flows.student - noisy.velocity).square().mean()
            value = value + config.data_weight * data
            logs["data_term"] = config.data_weight * data.detach()
        return Loss(value, len(clips.latents), logs)

    def follow(self, clips: ClipBatch, noisy: NoisyClips) -> Followed:
        """Student (with gradient) and teacher (without) on the same clean and noisy halves; flows in float32."""
        run = TeacherForcing(noisy.clean, first_block_frames=self.teacher.settings.first_block_frames)

        def flow(model: CausalWanTransformer3DModel) -> Tensor:
            result = model(noisy.noisy, noisy.timestep, clips.text, run=run)
            assert result is not None  # only a committing pass predicts nothing
            return result.float()

        with torch.no_grad(), hidden_states(self.teacher.model, self.compared) as theirs:
            taught = flow(self.teacher.model)
        with hidden_states(self.student, self.compared) as ours:
            own = flow(self.student)
        hidden = [_relative(ours[i].float(), theirs[i].float()) for i in self.compared]
        return Followed(own, taught, hidden)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """On clips held out: the error of the flow over the teacher's mean square, and how far rollouts part."""
        frames = max(self.config.frames)
        at_once = self.config.batch_frames // frames
        count = len(self.clips.held_out_numbers)
        draw = torch.Generator().manual_seed(EVALUATION_SEED)
        error = power = 0.0
        for first in range(0, count, at_once):
            clips = self.clips.held_out(range(first, min(first + at_once, count)), frames)
            flows = self.follow(clips, noised(clips.latents, self._blocks(frames), self.levels, draw))
            error += (flows.student - flows.teacher).square().sum().item()
            power += flows.teacher.square().sum().item()
        scores = {"held_out_error": error / power}
        if rollouts := min(self.config.evaluation_rollouts, count):
            clips = self.clips.held_out(range(rollouts), frames)
            spec = self._rollout(self.config.picture_frames)
            latents = [roll_out(model, clips.text, spec) for model in (self.student, self.teacher.model)]
            scores["rollout_distance"] = latent_distance(*latents)
        return scores

    def export(self, folder: Path) -> None:
        """The student's pipeline folder."""
        export_student(self.student, self.teacher, folder, settings=student_settings(self.teacher, self.student))

    def draw(self, path: Path) -> None:
        """Rollouts of the student, each beside the teacher's."""
        count = min(self.config.picture_clips, len(self.clips.held_out_numbers))
        clips = self.clips.held_out(range(count), self.config.picture_frames)
        draw_beside_teacher(self.teacher, self.student, clips, frames=self.config.picture_frames, path=path)

    def _rolled_out(self, clips: ClipBatch, draw: torch.Generator) -> ClipBatch:
        """The clips with all but some first blocks as the student continues them, by its own memory."""
        known = self.config.on_policy_known[int(torch.randint(len(self.config.on_policy_known), (1,), generator=draw))]
        seed = int(torch.randint(2**62, (1,), generator=draw))
        frames = clips.latents.shape[2]
        start = clips.latents[:, :, : self._blocks(frames)[known].start] if known else None
        made = roll_out(self.student, clips.text, self._rollout(frames, seed), known=start)
        return ClipBatch(made.to(clips.latents), clips.text, clips.captions)

    def _rollout(self, frames: int, seed: int = 0) -> RolloutSpec:
        _, _, height, width = self.clips.latent_shape
        return RolloutSpec(self.teacher.settings, height, width, frames, seed)

    def _blocks(self, frames: int) -> tuple[FrameRange, ...]:
        config = self.teacher.model.config
        return split_blocks(frames, config.block_frames, self.teacher.settings.first_block_frames)


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean() / theirs.square().mean()

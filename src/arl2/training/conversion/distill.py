"""Stage 2: the whole hybrid student follows the frozen teacher, on given clips and on its own rollouts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.batches import ClipBatch, TrainingClips
from arl2.training.conversion.dmd import DistributionMatching, Run
from arl2.training.conversion.pictures import RolloutSpec, latent_distance, roll_out
from arl2.training.conversion.students import StudentSpec, Window
from arl2.training.conversion.task import ConversionConfig, ConversionTask
from arl2.training.conversion.timestep_means import TimestepMeans
from arl2.training.conversion.trainable import Stage
from arl2.training.conversion.watching import hidden_states, seeing
from arl2.training.engine.config import check_share
from arl2.training.engine.noising import NoisyClips
from arl2.training.engine.processes import Processes
from arl2.training.engine.task import Batch, Loss


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ConversionConfig):
    """Settings of stage 2, beside those of every conversion.

    A student with a shorter window than its teacher, on clips longer than it, must carry the rest in its states.

    Attributes:
        aligned: folder of an export of stage 1 that has aligned these layers; None: they begin at their start values.
        start_from: folder of an export of stage 2, of this student and teacher, that training continues from, on other
            clips for instance; None: from ``aligned``.
        state_rank: LoRA rank of the state branch's queries, keys and values.
        ffn_rank: LoRA rank of the feed-forward layers.
        low_rank_alpha: LoRA alpha; null: twice the rank.
        ffn_rank_layers: which feed-forward layers have a LoRA adapter.
        student_window: latent frames that the student's softmax layers see: a number, ``"model"`` or ``"all"``.
        level_buckets: parts of the sigma range that have a running mean of the loss each, which it is divided by.
        level_decay: decay of these means.
        on_policy_share: share of the steps whose context is the student's own rollout; whole steps, as all processes
            wait for one that rolls out.
        on_policy_known: numbers of conditioning blocks of such a rollout; each step samples one of these.
        resampled_share: share of the other steps in which the student's context is its own sample of the clip: every
            block is sampled after true ones (with the windows of that step). It has the faults of a rollout, and goes
            where the clip goes. The teacher's context stays the clip, so the student learns to come back from such
            faults.
        resample_rounds: how often all blocks are sampled again, each time after those of the round before; each step
            samples one of these.
        hidden_weight: weight of matching the teacher's hidden states; 0: none.
        hidden_every: layers from one matched hidden state to the next.
        data_weight: weight of the plain flow-matching loss on the clips, for true clips; 0: none.
        memory_weight: extra weight of errors where memory is needed: where the teacher with the student's window
            predicts something else. A difference as large as the flow weighs ``1 + memory_weight``. Costs one more pass
            of the teacher; 0: none.
        evaluation_rollouts: prompts of held-out clips whose rollouts are compared with the teacher's.
    """

    stage: ClassVar[Stage] = 2

    aligned: str | None = None
    start_from: str | None = None
    state_rank: int = 16
    ffn_rank: int = 16
    low_rank_alpha: float | None = None
    ffn_rank_layers: Literal["hybrid", "all"] = "hybrid"
    student_window: Window = "model"
    level_buckets: int = 10
    level_decay: float = 0.98
    on_policy_share: float = 0.25
    on_policy_known: tuple[int, ...] = (0, 1)
    resampled_share: float = 0.0
    resample_rounds: tuple[int, ...] = (1,)
    hidden_weight: float = 0.0
    hidden_every: int = 2
    data_weight: float = 0.0
    memory_weight: float = 0.0
    evaluation_rollouts: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("on_policy_share", self.on_policy_share)
        check_share("resampled_share", self.resampled_share)
        if not self.resample_rounds or min(self.resample_rounds) < 1:
            raise ConfigError(f"resample_rounds is {list(self.resample_rounds)}; give numbers from 1.")
        if min(self.hidden_weight, self.data_weight, self.memory_weight) < 0 or self.hidden_every < 1:
            raise ConfigError(
                "hidden_weight, data_weight and memory_weight must be 0 or more, and hidden_every 1 or more."
            )
        if self.aligned is not None and self.start_from is not None:
            raise ConfigError(
                f"Got aligned '{self.aligned}' and start_from '{self.start_from}'; give one of them: what stage 2 has "
                "trained holds what stage 1 had."
            )
        if not self.on_policy_known or min(self.on_policy_known) < 0:
            raise ConfigError(f"on_policy_known is {list(self.on_policy_known)}; give numbers of blocks from 0.")

    def student(self) -> StudentSpec:
        return StudentSpec(
            plan=self.plan,
            state_rank=self.state_rank,
            ffn_rank=self.ffn_rank,
            low_rank_alpha=self.low_rank_alpha,
            ffn_rank_layers=self.ffn_rank_layers,
            window=self.student_window,
            aligned=self.aligned,
            start_from=self.start_from,
            state_form=self.state_form,
            state_horizon=self.state_horizon,
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


class DistillTask(ConversionTask[DistillConfig]):
    """Trains state branches, gates and LoRA adapters of a student; it keeps state.

    Raises:
        ConfigError, CheckpointError, GeometryError: a teacher, aligned layers, clips or lengths that do not fit.
    """

    def __init__(
        self, config: DistillConfig, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        super().__init__(config, device=device, clips=clips)
        if config.activation_checkpointing:
            self.student.enable_gradient_checkpointing()
        depth = len(self.student.config.layer_plan)
        self.compared = list(range(config.hidden_every - 1, depth, config.hidden_every)) if config.hidden_weight else []
        window = self.student.config.window
        if config.memory_weight and window == self.teacher.model.config.window:
            raise ConfigError(
                "memory_weight compares the teacher with itself seeing the student's window, but both see "
                f"{window}: give a student_window shorter than the teacher_window."
            )
        solver = self.teacher.settings.solver
        if config.resampled_share and solver != "few-step":
            raise ConfigError(
                f"resampled_share is {config.resampled_share}, but the teacher samples with {solver}: contexts are "
                "resampled in few steps with fresh noise; give a few-step teacher, or resampled_share=0."
            )
        self.matching = DistributionMatching(
            self.student_settings(), self.student.config.block_frames, shift=self.teacher.settings.shift
        )
        self.level_means = TimestepMeans(config.level_buckets, config.level_decay, self.device)
        for frames in config.frames:
            if max(config.on_policy_known) >= len(self._blocks(frames)) and config.on_policy_share:
                raise ConfigError(
                    f"on_policy_known = {list(config.on_policy_known)} leaves nothing of a clip of {frames} latent "
                    f"frames to roll out: it has {len(self._blocks(frames))} blocks."
                )

    def shard(self, processes: Processes) -> None:
        """Cut teacher and student into shards, layer by layer.

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
        super().shard(processes)

    def state_tensors(self) -> Mapping[str, Tensor]:
        """The running means of the loss by sigma."""
        return self.level_means.state_tensors()

    def end_step(self, processes: Processes) -> None:
        self.level_means.end_step(processes)

    def loss(self, batch: Batch) -> Loss:
        """Error of the student's flow against the teacher's, equally weighted over sigmas, and the options."""
        config, draw = self.config, batch.generator
        self._shrink_windows(batch)
        clips = self._sample_clips(draw)
        on_policy = bool(torch.rand((), generator=batch.common) < config.on_policy_share)
        if on_policy:
            with self.full_weights(here=True):
                clips = self._rolled_out(clips, batch)
        noisy = self._noised(clips, draw)
        context = None if on_policy else self._resampled(clips, batch)
        flows = self.follow(clips, noisy, context)

        square = (flows.student - flows.teacher).square()
        errors = noisy.block_means(square)
        weighted = errors
        if config.memory_weight:
            needed = self.memory_needed(clips, noisy, flows.teacher)
            weighted = noisy.block_means(square * (1 + config.memory_weight * needed))
        value = self.level_means.divided(weighted, noisy.sigma).mean()
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

    def follow(
        self,
        clips: ClipBatch,
        noisy: NoisyClips,
        context: Float[Tensor, "batch channels frames height width"] | None = None,
    ) -> Followed:
        """Student (with gradient) and teacher (without) on the same clean and noisy halves; flows in float32.

        With a ``context`` the student has it in place of the clean half, and hidden states are those of the noisy half.
        """
        with torch.no_grad(), hidden_states(self.teacher.model, self.compared) as theirs:
            taught = self._flow(self.teacher.model, clips, noisy)
        with hidden_states(self.student, self.compared) as ours:
            own = self._flow(self.student, clips, noisy, context)
        if context is not None:
            ours, theirs = ({i: x[:, x.shape[1] // 2 :] for i, x in states.items()} for states in (ours, theirs))
        hidden = [_relative(ours[i].float(), theirs[i].float()) for i in self.compared]
        return Followed(own, taught, hidden)

    @torch.no_grad()
    def memory_needed(
        self, clips: ClipBatch, noisy: NoisyClips, taught: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch 1 frames height width"]:
        """How far the teacher's flow ``taught`` is from its own with the student's window, over its mean square."""
        with seeing(self.teacher.model, self.student.config.window):
            forgetful = self._flow(self.teacher.model, clips, noisy)
        missed = (taught - forgetful).square().mean(1, keepdim=True)
        return missed / taught.square().mean()

    def _flow(
        self,
        model: CausalWanTransformer3DModel,
        clips: ClipBatch,
        noisy: NoisyClips,
        context: Tensor | None = None,
    ) -> Tensor:
        clean = noisy.clean if context is None else context
        run = TeacherForcing(clean, first_block_frames=self.teacher.settings.first_block_frames)
        flow: Tensor = model(noisy.noisy, noisy.timestep, clips.text, run=run)
        return flow.float()

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """On clips held out: the error of the flow over the teacher's mean square, and how far rollouts part.

        Where windows shrink in training, also the error with all of them shrunk.
        """
        self.windows.restore()
        scores = {"held_out_error": self._held_out_error()}
        if self.config.shrinks_windows:
            self.windows.shrink_all()
            scores["own_block_held_out_error"] = self._held_out_error()
            self.windows.restore()
        if rollouts := min(self.config.evaluation_rollouts, len(self.clips.held_out_numbers)):
            clips = self.clips.held_out(range(rollouts), max(self.config.frames))
            spec = self._rollout(self.config.picture_frames)
            latents = [roll_out(model, clips.text, spec) for model in (self.student, self.teacher.model)]
            scores["rollout_distance"] = latent_distance(*latents)
        return scores

    def _held_out_error(self) -> float:
        error = power = 0.0
        for clips, noisy in self._held_out():
            flows = self.follow(clips, noisy)
            error += (flows.student - flows.teacher).square().sum().item()
            power += flows.teacher.square().sum().item()
        return error / power

    def _rolled_out(self, clips: ClipBatch, batch: Batch) -> ClipBatch:
        """The clips with all but some first blocks as the student continues them, by its own memory."""
        choices = self.config.on_policy_known
        known = choices[int(torch.randint(len(choices), (1,), generator=batch.common))]
        seed = int(torch.randint(2**62, (1,), generator=batch.generator))
        frames = clips.latents.shape[2]
        start = clips.latents[:, :, : self._blocks(frames)[known].start] if known else None
        made = roll_out(self.student, clips.text, self._rollout(frames, seed), known=start)
        return ClipBatch(made.to(clips.latents), clips.text, clips.captions)

    def _resampled(self, clips: ClipBatch, batch: Batch) -> Tensor | None:
        """The student's context: the clips as it samples them; None for the clips themselves."""
        config = self.config
        # Whole steps, as rollouts are: all processes wait for one that samples.
        if not config.resampled_share or torch.rand((), generator=batch.common) >= config.resampled_share:
            return None
        choices = config.resample_rounds
        rounds = choices[int(torch.randint(len(choices), (1,), generator=batch.common))]

        def flow(noisy: Tensor, timestep: Tensor, run: Run) -> Tensor:
            predicted: Tensor = self.student(noisy, timestep, clips.text, run=run)
            return predicted.float()

        return self.matching.resampled(flow, clips.latents, batch.generator, rounds=rounds)

    def _rollout(self, frames: int, seed: int = 0) -> RolloutSpec:
        _, _, height, width = self.clips.latent_shape
        return RolloutSpec(self.teacher.settings, height, width, frames, seed)


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean() / theirs.square().mean()

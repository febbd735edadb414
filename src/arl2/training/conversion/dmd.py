"""DMD (distribution matching distillation): a student matches in few steps what a real-score model samples in many.

A model that predicts the flow predicts a mean, and few steps with fresh noise between them stay close to it: empty
frames, blurred edges. Here the student is run as in a rollout, and what it generates is moved to where the real-score
model finds it likelier than a critic (the fake-score model) does, which knows what the student generates now (arXiv
2311.18828; for a causal student on its own past, Self Forcing, arXiv 2506.08009). The critic learns that by flow
matching, side by side with the student.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.plan import converted_layers
from arl2.checkpoints.load import load_transformer
from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.errors import ConfigError
from arl2.geometry import split_blocks
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import load_settings, pipeline_folder
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.pictures import RolloutSpec, roll_out
from arl2.training.conversion.students import Teacher, export_student, load_teacher
from arl2.training.conversion.task import TeacherStudentConfig, TeacherStudentTask
from arl2.training.conversion.trainable import groups_of, unfreeze
from arl2.training.engine.config import check_number, check_share
from arl2.training.engine.noising import NoisyClips, SigmasBetween, noised
from arl2.training.engine.processes import Processes
from arl2.training.engine.task import COMPUTE_DTYPES, Batch, Loss, ParameterGroup, groups_by_decay

# Sigmas at which real-score model and critic are compared, before the shift: at the ends they say the same.
_COMPARED = (0.02, 0.98)
# Below this distance from the real-score model's estimate a block has no direction to go.
_NEAREST = 1e-3

# What the student's blocks are conditioned on: nothing (the first block), the clip, or its own rollout.
Context = Literal["none", "clip", "rollout"]
Run = DiffusionForcing | TeacherForcing
Flow = Callable[[Tensor, Tensor, Run], Tensor]
"""A model with its prompts: noisy clips ``[B, C, F, h, w]``, timesteps ``[B, F]`` and the pass to flows."""


class Flows(NamedTuple):
    """The three models of a DMD run, with the prompts of one batch."""

    student: Flow
    real: Flow
    critic: Flow


class DmdLosses(NamedTuple):
    """``generator`` and ``sample`` reach the student alone, ``critic`` the critic alone.

    ``sample`` is what the losses are of: the student's blocks, ``[B, C, F, h, w]``, for terms of the caller's own.
    """

    generator: Float[Tensor, ""]
    critic: Float[Tensor, ""]
    sample: Float[Tensor, "clips channels frames height width"]


class DistributionMatching:
    """The losses of DMD, whatever the models and the clips are.

    Args:
        settings: how the student is sampled, in few steps.
        block_frames: latent frames of a block; the settings say those of the first one.
        shift: of the sigmas at which the scores are compared.
    """

    def __init__(self, settings: GenerationSettings, block_frames: int, *, shift: float) -> None:
        sampler = settings.sampler()
        self.sigmas = [tuple(timestep / 1000 for timestep in sampler.timesteps_of(block)) for block in (0, 1)]
        self.compared = SigmasBetween(*_COMPARED, shift=shift)
        self.block_frames, self.first_block_frames = block_frames, settings.first_block_frames

    @property
    def opening_frames(self) -> int:
        """Latent frames of a first block."""
        return self.first_block_frames or self.block_frames

    def pass_over(self, context: Tensor | None) -> Run:
        """Which pass sees ``context`` before each block; None: the clips are first blocks."""
        if context is None:
            return DiffusionForcing()
        return TeacherForcing(context, first_block_frames=self.first_block_frames)

    def losses(self, flows: Flows, clean: Tensor, context: Tensor | None, draw: torch.Generator) -> DmdLosses:
        """Of one batch; what trains the first block is clips of one block, so in longer clips it is context alone.

        Args:
            flows: the models.
            clean: clips, for their shape and device.
            context: ``[B, C, F, h, w]`` that precedes each block; None: the clips are first blocks.
            draw: of all randomness, on the CPU.
        """
        run = self.pass_over(context)
        sample = self.sample(flows.student, run, clean, draw)
        taught = slice(0 if context is None else self.opening_frames, None)
        target = self.target(flows, sample.detach(), run, draw)
        generator = 0.5 * (sample - target)[:, :, taught].square().mean()
        again = self.noised(sample.detach(), draw)
        flow = flows.critic(again.noisy, again.timestep, run)
        return DmdLosses(generator, (flow - again.velocity)[:, :, taught].square().mean(), sample)

    def sample(
        self, flow: Flow, run: Run, like: Tensor, draw: torch.Generator, *, steps: int | None = None
    ) -> Float[Tensor, "clips channels frames height width"]:
        """Every block by the student's first few denoising steps, side by side; the last one has gradients.

        ``steps`` says how many; None: drawn.
        """
        sigmas = self.sigmas[0 if isinstance(run, DiffusionForcing) else 1]
        last = int(torch.randint(len(sigmas), (), generator=draw)) if steps is None else steps - 1
        x = _noise(like, draw)
        for number, sigma in enumerate(sigmas[: last + 1]):
            timestep = torch.full((len(x), x.shape[2]), 1000 * sigma, device=x.device)
            with torch.set_grad_enabled(number == last and torch.is_grad_enabled()):
                sample = velocity_to_clean(x, flow(x, timestep, run), sigma)
            if number < last:
                x = add_noise(sample, _noise(like, draw), sigmas[number + 1])
        return sample

    @torch.no_grad()
    def resampled(
        self, flow: Flow, clean: Tensor, draw: torch.Generator, *, rounds: int = 1
    ) -> Float[Tensor, "clips channels frames height width"]:
        """Clips as a model samples them: every block but the first, in all its steps, after the blocks before it.

        In the first round these are the clips' own, so what comes out goes where they go, with the faults of one
        generated block. Each further round takes the blocks of the round before, so n rounds have those of n blocks.
        """
        opening, context = clean[:, :, : self.opening_frames], clean
        for _ in range(rounds if clean.shape[2] > self.opening_frames else 0):
            sample = self.sample(flow, self.pass_over(context), clean, draw, steps=len(self.sigmas[1]))
            context = torch.cat([opening, sample[:, :, self.opening_frames :]], 2)
        return context

    @torch.no_grad()
    def target(
        self, flows: Flows, sample: Tensor, run: Run, draw: torch.Generator
    ) -> Float[Tensor, "clips channels frames height width"]:
        """The sample moved from the critic's estimate towards the real-score model's (arXiv 2311.18828, Eqs. 7, 8)."""
        there = self.noised(sample, draw)
        real, critic = (
            velocity_to_clean(there.noisy, flow(there.noisy, there.timestep, run), there.sigma_of_frames)
            for flow in (flows.real, flows.critic)
        )
        scale = there.by_frame(there.block_means((sample - real).abs()).clamp(min=_NEAREST))
        return sample + (real - critic) / scale

    def noised(self, sample: Tensor, draw: torch.Generator) -> NoisyClips:
        """Beside noisy copies, one sigma a block."""
        blocks = split_blocks(sample.shape[2], self.block_frames, self.first_block_frames)
        return noised(sample, blocks, self.compared, draw)

    def kind_of(self, step: int, lengths: Sequence[int], own_context_share: float) -> tuple[int, Context]:
        """Latent frames of a step's clips and their context: by turns, so that processes never wait for each other."""
        turn, which = divmod(step, len(lengths))
        frames = lengths[which]
        if frames == self.opening_frames:
            return frames, "none"
        return frames, "rollout" if has_turn(turn, own_context_share) else "clip"


def has_turn(turn: int, share: float) -> bool:
    """Whether a turn is one of this share of all, spread evenly."""
    return math.floor((turn + 1) * share) > math.floor(turn * share)


@dataclass(frozen=True, kw_only=True)
class DmdConfig(TeacherStudentConfig):
    """Settings of a DMD run, beside those of every run with a teacher.

    The teacher is the real-score model: a softmax model whose samples in many steps the student is to match. The critic
    begins as a copy of it. All three read the prompt embeddings of the clips, so they must share a text part.

    A hybrid student trains what stage 2 of its conversion trained, a softmax student all weights of its transformer.

    Clips of one block train the first block of a stream, longer ones the blocks after it.

    Attributes:
        start_from: what the student begins as: the folder of an export, or an embedded model.
        critic_rate: learning rate of the critic, as a multiple of the student's.
        own_context_share: share of the longer batches conditioned on the student's own rollout instead of the clips.
        steps: denoising timesteps of the student; null: its own.
        first_block_steps: those of its first block; null: its own, or ``steps``.
        shift: of its noise schedule; null: its own.
    """

    start_from: str
    critic_rate: float = 2.5
    own_context_share: float = 0.5
    steps: tuple[int, ...] | None = None
    first_block_steps: tuple[int, ...] | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        check_number("critic_rate", self.critic_rate, above=0)
        check_share("own_context_share", self.own_context_share)


class DmdTask(TeacherStudentTask[DmdConfig]):
    """Trains a student and a critic against a frozen real-score model; in one process's memory, without shards.

    Raises:
        ConfigError, CheckpointError, GeometryError: models, clips or lengths that do not fit.
    """

    def __init__(
        self, config: DmdConfig, *, device: torch.device | str = "cpu", clips: TrainingClips | None = None
    ) -> None:
        self.start = _load_start(config)
        super().__init__(config, device=device, clips=clips)
        real, student = self.teacher.model.config, self.student.config
        for name in ("in_channels", "text_dim", "block_frames"):
            if real[name] != student[name]:
                raise ConfigError(
                    f"The teacher '{config.teacher}' has {name} {real[name]} and the student '{config.start_from}' "
                    f"{student[name]}; give models of the same family."
                )
        critic = load_teacher(config.teacher, device=self.device, window=config.teacher_window)
        self.critic = critic.model.requires_grad_(True)
        if config.activation_checkpointing:
            self.student.enable_gradient_checkpointing()
            self.critic.enable_gradient_checkpointing()
        shift = self.start.settings.shift if config.shift is None else config.shift
        self.matching = DistributionMatching(self.student_settings(), student.block_frames, shift=shift)

    def make_student(self) -> CausalWanTransformer3DModel:
        return self.start.model.to(self.device)

    def unfreeze(self) -> dict[str, nn.Parameter]:
        if self.is_hybrid:
            return unfreeze(self.student, 2)
        self.student.float().requires_grad_(True)
        return dict(self.student.named_parameters())

    @property
    def is_hybrid(self) -> bool:
        """Whether the student has layers that a conversion trains."""
        return bool(converted_layers(self.student.config.layer_plan))

    def student_settings(self) -> GenerationSettings:
        config, own = self.config, self.start.settings
        return replace(
            own,
            solver="few-step",
            guidance_scale=1.0,
            first_block_fresh_below=1.0,  # fresh noise between all steps is what is trained
            steps=config.steps or own.steps,
            first_block_steps=config.first_block_steps or (None if config.steps else own.first_block_steps),
            shift=own.shift if config.shift is None else config.shift,
        )

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The student's, and the critic's at its own rate; both take a step together, each by its own loss."""
        decay = self.config.weight_decay
        critic = groups_by_decay(
            _of_transformer(self.critic),
            weight_decay=decay,
            name="critic.",
            learning_rate_scale=self.config.critic_rate,
        )
        if self.is_hybrid:
            return [*groups_of(self.student, self.trained, 2, weight_decay=decay), *critic]
        return [*groups_by_decay(_of_transformer(self.student), weight_decay=decay), *critic]

    def shard(self, processes: Processes) -> None:
        """Refused: three models of which two are no copies of each other are not cut into shards."""
        raise ConfigError('DMD keeps whole models on every process; leave loop.sharding at "none".')

    def loss(self, batch: Batch) -> Loss:
        """Generator loss of the student and critic loss together; no gradient of one reaches the other's model."""
        frames, kind = self.matching.kind_of(batch.step, self.config.frames, self.config.own_context_share)
        clips = self.clips.sample(self.config.batch_frames // frames, frames, batch.generator)
        context = None if kind == "none" else clips.latents
        if kind == "rollout":
            seed = int(torch.randint(2**62, (1,), generator=batch.generator))
            height, width = clips.latents.shape[3:]
            spec = RolloutSpec(self.student_settings(), height, width, frames, seed)
            context = roll_out(self.student, clips.text, spec).to(clips.latents)
        generator, critic, _ = self.matching.losses(self._flows(clips.text), clips.latents, context, batch.generator)
        logs = {"generator": generator.detach(), "critic": critic.detach()}
        return Loss(generator + critic, len(clips.latents), logs)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Both losses on the clips held out, conditioned on these, always with the same noise."""
        draw, count = self._evaluation_generator(), 0
        sums = {"held_out_generator": 0.0, "held_out_critic": 0.0}
        for clips in self._held_out_clips():
            opening = clips.latents.shape[2] == self.matching.opening_frames
            context = None if opening else clips.latents
            losses = self.matching.losses(self._flows(clips.text), clips.latents, context, draw)
            for name, value in zip(sums, (losses.generator, losses.critic), strict=True):
                sums[name] += value.item() * len(clips.latents)
            count += len(clips.latents)
        return {name: value / count for name, value in sums.items()}

    def export(self, folder: Path) -> None:
        """The student's pipeline folder; all but the transformer is that of ``start_from``."""
        trained = {name: x for name, x in self.student.named_parameters() if name in self.trained}
        export_student(self.student, self.start, folder, settings=self.student_settings(), trained=trained)

    def _flows(self, text: Tensor) -> Flows:
        def flow(model: CausalWanTransformer3DModel) -> Flow:
            def predict(noisy: Tensor, timestep: Tensor, run: Run) -> Tensor:
                predicted = model(noisy, timestep, text, run=run)
                assert predicted is not None  # only a committing pass predicts nothing
                return predicted.float()

            return predict

        return Flows(flow(self.student), flow(self.teacher.model), flow(self.critic))


def _load_start(config: DmdConfig) -> Teacher:
    """The model that the student begins as, with the folder that its other parts come from."""
    folder = pipeline_folder(config.start_from)
    model = cast_model(load_transformer(folder.transformer), COMPUTE_DTYPES[config.loop.compute]).eval()
    return Teacher(folder, model, load_settings(folder), model.config.window)


def _of_transformer(model: CausalWanTransformer3DModel) -> dict[str, nn.Parameter]:
    return {f"transformer.{name}": parameter for name, parameter in model.named_parameters()}


def _noise(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw).to(like.device)

"""DMD on the shapes world: scenes as clips, captions as prompts, and a text part that trains with the student."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from arl2.attention.plan import converted_layers
from arl2.errors import ConfigError
from arl2.pipeline.folder import VERIFIER, load_settings, pipeline_folder
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.training.captioned import Captioned, load_export
from arl2.shapes.training.scene_clips import SceneBatch
from arl2.shapes.training.task import WEIGHT_DECAY, ShapesConfig, ShapesTask, part_groups
from arl2.training.conversion.dmd import DistributionMatching, Flows, Run, has_turn
from arl2.training.conversion.trainable import groups_of, unfreeze
from arl2.training.engine.config import check_number, check_share
from arl2.training.engine.task import Batch, Loss, ParameterGroup


@dataclass(frozen=True, kw_only=True)
class SceneDmdConfig(ShapesConfig):
    """Settings of a DMD run on scenes, beside those of ``ShapesConfig``.

    Single blocks train the first block of a stream, longer clips the blocks after it. A share of
    ``own_context_share`` of the longer ones is conditioned on the student's own rollout, the rest on the clips.

    A hybrid student keeps its pretrained weights and its text part: only what stage 2 of a conversion trains is trained
    further.

    Attributes:
        start_from: what the student begins as, a teacher or a hybrid: the folder of an export, or an embedded model.
        real: the same of the real-score model, whose samples in many steps the student is to match; the critic begins
            as a copy of it. None: ``start_from``.
        critic_rate: learning rate of the critic, as a multiple of the student's.
        redrawn_share: share of the steps on clips in which every context block is the student's own sample, made after
            the true blocks before it: it goes where the clip goes, and has the faults of a rollout.
        data_weight: weight of the mean square error to the clips, where the context is theirs or redrawn after them:
            what comes next is nearly decided, so a mean blurs little (the DMD of arXiv 2311.18828 has a regression
            beside it, too). It counts from the later block on that shows the object first: while an occluded one has
            not appeared, nothing decides when it does, and the mean would be that it never does.
    """

    start_from: str
    real: str | None = None
    critic_rate: float = 2.5
    redrawn_share: float = 0.0
    data_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("critic_rate", self.critic_rate, above=0)
        check_share("redrawn_share", self.redrawn_share)
        check_number("data_weight", self.data_weight, least=0)
        if self.first_block_fresh_below < 1:
            raise ConfigError(
                "A DMD run trains with fresh noise at every step; leave first_block_fresh_below at 1 (it is "
                f"{self.first_block_fresh_below})."
            )


class SceneDmdTask(ShapesTask[SceneDmdConfig]):
    """Trains a transformer, its text encoder and a critic side by side; a ``Task``.

    Raises:
        ConfigError: settings or models that do not fit.
        CheckpointError: a folder that is no export.
    """

    def __init__(self, config: SceneDmdConfig, *, device: torch.device | str = "cpu") -> None:
        model, text = load_export(config.start_from)
        super().__init__(config, model, text, device=device)
        self.start = pipeline_folder(config.start_from)
        self.converted: dict[str, nn.Parameter] = {}
        if converted_layers(model.config.layer_plan):
            self.converted = unfreeze(self.model, 2)
            self.text.encoder.requires_grad_(False)
        real = config.real or config.start_from
        self.real, self.critic = Captioned(real, self.device).frozen(), Captioned(real, self.device)
        if self.real.model.config.block_frames != self.block_frames:
            raise ConfigError(
                f"'{real}' makes blocks of {self.real.model.config.block_frames} frames, '{config.start_from}' of "
                f"{self.block_frames}; give models of the same blocks."
            )
        self.matching = DistributionMatching(self.generation(), self.block_frames, shift=config.shift)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The student's, and the critic's at its own rate; both take a step together, each by its own loss."""
        critic = part_groups(
            self.critic.model, self.critic.text, name="critic.", learning_rate_scale=self.config.critic_rate
        )
        if self.converted:
            return [*groups_of(self.model, self.converted, 2, weight_decay=WEIGHT_DECAY), *critic]
        return [*part_groups(self.model, self.text), *critic]

    def loss(self, batch: Batch) -> Loss:
        """Generator loss and critic loss together; no gradient of one reaches the other's model."""
        frames, kind = self.matching.kind_of(batch.step, self.config.lengths, self.config.own_context_share)
        clips = self.sample(frames, batch.generator)
        clean = clips.clean.to(self.device)
        text = self.text.encode_captions(clips.captions)
        flows = self.flows(text, clips.captions)
        context = None if kind == "none" else clean
        if kind == "rollout":
            context = self.roll_out(text, frames, seed=int(torch.randint(2**62, (1,), generator=batch.generator)))
        elif context is not None and self._is_redrawn(batch.step):
            context = self.matching.resampled(flows.student, clean, batch.generator)
        generator, critic, sample = self.matching.losses(flows, clean, context, batch.generator)
        # Logged under the names that earlier runs have.
        logs = {"moved": generator.detach(), "critic": critic.detach()}
        total = generator + critic
        if self.config.data_weight:
            data = self._data_error(sample, clips, clean) if kind == "clip" else torch.zeros_like(total)
            logs["data"] = data.detach()
            total = total + self.config.data_weight * data
        return Loss(total, len(clean), logs)

    def _is_redrawn(self, step: int) -> bool:
        """Of a step on clips; by turns, as rollouts are."""
        turn = step // len(self.config.lengths)
        on_clips = turn - math.floor(turn * self.config.own_context_share)
        return has_turn(on_clips, self.config.redrawn_share)

    def _data_error(self, sample: Tensor, clips: SceneBatch, clean: Tensor) -> Tensor:
        decided = clips.shown_by(self.codec, self.block_frames).repeat_interleave(self.block_frames, 1)
        error = (sample - clean).square().mean((1, 3, 4)) * decided.to(self.device)
        return error[:, self.block_frames :].mean()

    def flows(self, text: Tensor, captions: list[str]) -> Flows:
        """The three models; each reads the captions by its own text part."""

        def student(noisy: Tensor, timestep: Tensor, run: Run) -> Tensor:
            flow = self.model(noisy, timestep, text, run=run)
            return flow

        return Flows(
            student,
            lambda noisy, timestep, run: self.real.flow(noisy, timestep, captions, run),
            lambda noisy, timestep, run: self.critic.flow(noisy, timestep, captions, run),
        )

    def generation(self) -> GenerationSettings:
        """How the student is sampled; a hybrid keeps its text part, so it keeps the reward model of its start too."""
        settings = super().generation()
        if not self._keeps_reward_model:
            return settings
        return replace(settings, first_block_candidates=load_settings(self.start).first_block_candidates)

    def write_export(self, folder: Path) -> None:
        """As of any model of the shapes world, with that reward model."""
        super().write_export(folder)
        if self._keeps_reward_model:
            shutil.copytree(self.start.verifier, folder / VERIFIER, dirs_exist_ok=True)

    @property
    def _keeps_reward_model(self) -> bool:
        return bool(self.converted) and self.start.verifier.is_dir()

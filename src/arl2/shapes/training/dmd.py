"""The DMD task: few levels learn to draw what a model draws in many (distribution matching distillation).

A model that predicts the flow predicts a mean, and few levels that draw fresh noise each time stay close to it: empty
pictures, blurred edges. Here the few levels are run as in a rollout, and what they make is moved to where the model of
many levels finds it likelier than a critic does, who knows what is made now (arXiv 2311.18828; for a causal student on
its own past, arXiv 2506.08009). The critic learns that by flow matching, side by side with the student.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.plan import converted_layers
from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.errors import ConfigError
from arl2.geometry import split_blocks
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.pipeline.folder import VERIFIER, load_settings, pipeline_folder
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.training.captioned import Captioned, load_export
from arl2.shapes.training.task import WEIGHT_DECAY, ShapesConfig, ShapesTask, part_groups
from arl2.training.conversion.trainable import groups_of, unfreeze
from arl2.training.engine.config import check_share
from arl2.training.engine.noising import LevelsBetween, NoisyClips, noised
from arl2.training.engine.start import start_run_from_words
from arl2.training.engine.task import Batch, Loss, ParameterGroup

# Noise levels that are compared, before the shift: at the ends there is nothing to tell.
_COMPARED = (0.02, 0.98)
# A made block that is where it should be has no direction to go.
_NEAREST = 1e-3


# What the student stands on: the clip, the clip as it draws that itself, or what it has rolled out.
Context = Literal["clip", "redrawn", "rollout"]


@dataclass(frozen=True, kw_only=True)
class DmdConfig(ShapesConfig):
    """Settings of a DMD run, beside those of ``ShapesConfig``.

    Single blocks teach the opening of a stream; of longer clips the later blocks are taught. A share of
    ``own_context_share`` stands on what the model has rolled out itself, the others on the clips, or on these as the
    model draws them.

    A hybrid student keeps its pretrained weights and its text part: what stage 2 of a conversion trains goes on
    training, and what it lost there by following flows it can win back by what it draws.

    Attributes:
        start_from: what the student begins as, a teacher or a hybrid: the folder of an export, or an embedded model.
        real: the same of the model whose draws at as many levels as it likes the student is to match; the critic
            begins as it. None: ``start_from``.
        critic_rate: learning rate of the critic over that of the student.
        redrawn_share: share of the steps on clips whose context is drawn anew by the model, each block after the true
            ones before it: it goes where the clip goes, and has the faults of a rollout.
        data_weight: of the error to the clips themselves, where the student stands on them, from the later block on
            that shows their object first: what comes next is nearly decided, so a mean square blurs little. (The DMD of
            arXiv 2311.18828 has a regression beside it, too.) Blocks that go on hiding it are no target: when it comes
            out is decided by nothing, so the mean of all would be that it never does.
    """

    start_from: str
    real: str | None = None
    critic_rate: float = 2.5
    redrawn_share: float = 0.0
    data_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_rate <= 0:
            raise ConfigError(f"critic_rate is {self.critic_rate}; give a number above 0.")
        check_share("redrawn_share", self.redrawn_share)
        if self.data_weight < 0:
            raise ConfigError(f"data_weight is {self.data_weight}; give a number from 0.")
        if self.first_block_fresh_below < 1:
            raise ConfigError(
                "A DMD run trains levels with fresh noise at each; leave first_block_fresh_below at 1 (it is "
                f"{self.first_block_fresh_below})."
            )


class DmdTask(ShapesTask[DmdConfig]):
    """Trains a transformer, its text encoder and a critic, side by side; implements ``arl2.training.engine.task.Task``.

    Raises:
        ConfigError: settings or models that do not fit.
        CheckpointError: a folder that is no export.
    """

    def __init__(self, config: DmdConfig, *, device: torch.device | str = "cpu") -> None:
        model, text = load_export(config.start_from)
        super().__init__(config, model, text, device=device)
        self.converted: dict[str, torch.nn.Parameter] = {}
        self.start = pipeline_folder(config.start_from)
        if converted_layers(model.config.layer_plan):
            self.converted = unfreeze(self.model, 2)
            self.text.words.encoder.requires_grad_(False)
        real = config.real or config.start_from
        self.real, self.critic = Captioned(real, self.device).frozen(), Captioned(real, self.device)
        if self.real.model.config.block_frames != self.block_frames:
            raise ConfigError(
                f"'{real}' makes blocks of {self.real.model.config.block_frames} frames, '{config.start_from}' of "
                f"{self.block_frames}; give models of the same blocks."
            )
        sampler = self.generation().sampler()
        self.compared = LevelsBetween(*_COMPARED, shift=config.shift)
        self.levels = [tuple(level / 1000 for level in sampler.levels_of(block)) for block in (0, 1)]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The student's, and the critic's at its own rate; both move in one step, each by its own loss."""
        critic = part_groups(
            self.critic.model, self.critic.text, name="critic.", learning_rate_scale=self.config.critic_rate
        )
        if self.converted:
            return [*groups_of(self.model, self.converted, 2, weight_decay=WEIGHT_DECAY), *critic]
        return [*part_groups(self.model, self.text), *critic]

    def loss(self, batch: Batch) -> Loss:
        """Of the student: how far from where it should be. Of the critic: how wrong about what is made."""
        draw = batch.generator
        frames, context = self._kind(batch.step)
        clips = self.drawn(frames, draw)
        clean, captions = clips.clean.to(self.device), clips.captions
        text = self.text.encode_captions(captions)
        run: DiffusionForcing | TeacherForcing = DiffusionForcing()
        if context is not None:
            run = TeacherForcing(self._context(context, clean, text, draw))
        made = self._made(text, run, clean, draw)

        # The opening of a longer clip is context: single blocks teach it, at levels of its own.
        taught = slice(0 if context is None else self.block_frames, None)
        better = self._better(made.detach(), captions, run, draw)
        moved = 0.5 * (made - better)[:, :, taught].square().mean()
        again = self._noised(made.detach(), draw)
        flow = self.critic.flow(again.noisy, again.timestep, captions, run)
        wrong = (flow - again.velocity)[:, :, taught].square().mean()
        missed = torch.zeros((), device=self.device)
        if self.config.data_weight and context in ("clip", "redrawn"):
            decided = clips.shown_by(self.codec, self.block_frames).repeat_interleave(self.block_frames, 1)
            error = (made - clean).square().mean((1, 3, 4)) * decided.to(self.device)
            missed = error[:, taught].mean()
        logs = {"moved": moved.detach(), "critic": wrong.detach()}
        if self.config.data_weight:
            logs["data"] = missed.detach()
        return Loss(moved + wrong + self.config.data_weight * missed, len(clean), logs)

    def _made(
        self,
        text: Tensor,
        run: DiffusionForcing | TeacherForcing,
        like: Tensor,
        draw: torch.Generator,
        *,
        to_the_end: bool = False,
    ) -> Float[Tensor, "clips channels frames height width"]:
        """Every block by the first few of its levels, side by side; the last one that is run has gradients.

        ``to_the_end`` runs all levels, without gradients.
        """
        levels = self.levels[0 if isinstance(run, DiffusionForcing) else 1]
        last = len(levels) - 1 if to_the_end else int(torch.randint(len(levels), (), generator=draw))
        x = self._noise(like, draw)
        for number, sigma in enumerate(levels[: last + 1]):
            timestep = torch.full((len(x), x.shape[2]), 1000 * sigma, device=self.device)
            with torch.set_grad_enabled(number == last and not to_the_end):
                flow = self.model(x, timestep, text, run=run)
                assert flow is not None
                made = velocity_to_clean(x, flow, sigma)
            if number < last:
                x = add_noise(made, self._noise(like, draw), levels[number + 1])
        return made

    @torch.no_grad()
    def _better(
        self, made: Tensor, captions: list[str], run: DiffusionForcing | TeacherForcing, draw: torch.Generator
    ) -> Float[Tensor, "clips channels frames height width"]:
        """Where what was made should rather be: on from the critic's estimate to the real one's (Eqs. 7, 8)."""
        there = self._noised(made, draw)
        sigma = there.sigma.repeat_interleave(self.block_frames, 1)[:, None, :, None, None]
        real, critic = (
            velocity_to_clean(there.noisy, one.flow(there.noisy, there.timestep, captions, run), sigma)
            for one in (self.real, self.critic)
        )
        away = (made - real).abs().unflatten(2, (-1, self.block_frames)).mean((1, 3, 4, 5))
        scale = away.clamp(min=_NEAREST).repeat_interleave(self.block_frames, 1)[:, None, :, None, None]
        return made + (real - critic) / scale

    def generation(self) -> GenerationSettings:
        """How the model is sampled; a converted one keeps its text part, so the verifier of its start chooses on."""
        settings = super().generation()
        if not self._keeps_verifier:
            return settings
        return replace(settings, first_block_candidates=load_settings(self.start).first_block_candidates)

    def export(self, folder: Path) -> None:
        """As of any model of the shapes world, with that verifier."""
        super().export(folder)
        if self._keeps_verifier:
            shutil.copytree(self.start.verifier, folder / VERIFIER, dirs_exist_ok=True)

    @property
    def _keeps_verifier(self) -> bool:
        return bool(self.converted) and self.start.verifier.is_dir()

    def _kind(self, step: int) -> tuple[int, Context | None]:
        """Latent frames of a step's clips, and what stands before their blocks (nothing, of openings): by turns.

        So processes never wait for one another's longer batch.
        """
        turn, which = divmod(step, len(self.config.lengths))
        frames, own = self.config.lengths[which], self.config.own_context_share
        if frames == self.block_frames:
            return frames, None
        if _has_its_turn(turn, own):
            return frames, "rollout"
        on_clips = turn - math.floor(turn * own)  # turns before this one that stood on clips
        return frames, "redrawn" if _has_its_turn(on_clips, self.config.redrawn_share) else "clip"

    def _context(self, context: Context, clean: Tensor, text: Tensor, draw: torch.Generator) -> Tensor:
        if context == "clip":
            return clean
        if context == "rollout":
            return self._rolled_out(clean, text, draw)
        # The opening stays: what it shows is decided by nothing before it.
        redrawn = self._made(text, TeacherForcing(clean), clean, draw, to_the_end=True)
        return torch.cat([clean[:, :, : self.block_frames], redrawn[:, :, self.block_frames :]], 2)

    def _rolled_out(self, clean: Tensor, text: Tensor, draw: torch.Generator) -> Tensor:
        """What the model itself makes of the clips' prompts."""
        return self.roll_out(text, clean.shape[2], seed=int(torch.randint(2**62, (1,), generator=draw)))

    def _noised(self, made: Tensor, draw: torch.Generator) -> NoisyClips:
        """Made clips beside their noisy copies."""
        return noised(made, split_blocks(made.shape[2], self.block_frames), self.compared, draw)

    def _noise(self, like: Tensor, draw: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=draw).to(self.device)


def _has_its_turn(turn: int, share: float) -> bool:
    """Whether this turn is one of the ``share`` of all, spread evenly."""
    return math.floor((turn + 1) * share) > math.floor(turn * share)


if __name__ == "__main__":
    start_run_from_words(DmdConfig, lambda config, device: DmdTask(config, device=device))

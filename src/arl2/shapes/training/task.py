"""What trainings of the shapes world's models share: clips, transformer and text part, evaluation, export."""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from arl2.errors import ConfigError
from arl2.files.atomic import atomic_folder, write_atomically
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import CODEC, GENERATION, TEXT, TRANSFORMER
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.codec import load_group_codec
from arl2.shapes.evaluator.oracle import read
from arl2.shapes.evaluator.scoring import score_readings
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.request import requests_of
from arl2.shapes.prompts.text import ShapesText
from arl2.shapes.training.scene_clips import SceneBatch, SceneClipsConfig, SceneSampler
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.shapes.world.scene import sample_scenes
from arl2.training.conversion.pictures import RolloutSpec, roll_out
from arl2.training.engine.config import check_share
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.task import Batch, Loss, ParameterGroup, groups_by_decay

# Prompts of evaluation come from a seed that no training run uses.
_HELD_OUT_SEED = 2**40 + 2
# Of matrices between layers.
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(SceneClipsConfig):
    """Settings that all trainings of the shapes world's models have, beside those of their clips.

    Attributes:
        lengths: latent frames of a training clip, one length a batch.
        batch_frames: latent frames in a batch: as many clips as fit.
        shift: of the noise schedule, in training and in sampling.
        own_context_share: share of the longer batches whose context is not the clips but the model's own blocks, as in
            a rollout.
        steps: denoising timesteps of a block, exported with the model.
        first_block_steps: those of the first block, where they differ.
        first_block_fresh_below: sigma below which the first block gets fresh noise between steps.
        evaluation_clips: rollouts that the ground-truth evaluator scores.
        evaluation_frames: latent frames of each of them.
    """

    loop: LoopConfig
    lengths: tuple[int, ...] = (3,)
    batch_frames: int = 192
    shift: float = 3.0
    own_context_share: float = 0.0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_block_steps: tuple[int, ...] | None = None
    first_block_fresh_below: float = 1.0
    evaluation_clips: int = 24
    evaluation_frames: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or max(self.lengths) > self.clip_frames:
            raise ConfigError(
                f"lengths are {list(self.lengths)}; give one or more, each at most clip_frames = {self.clip_frames}."
            )
        if self.batch_frames < max(self.lengths):
            raise ConfigError(f"batch_frames = {self.batch_frames} is less than the longest clip, {max(self.lengths)}.")
        check_share("own_context_share", self.own_context_share)


Config = TypeVar("Config", bound=ShapesConfig)


class ShapesTask(ABC, Generic[Config]):
    """Trains a transformer and its text part on the shapes world; a ``Task``.

    Args:
        config: the settings.
        model, text: in float32; moved to the device.
        device: of the training.

    Raises:
        ConfigError: lengths that are not whole blocks of the model.
        CheckpointError: codec or latents that cannot be read.
    """

    def __init__(
        self,
        config: Config,
        model: CausalWanTransformer3DModel,
        text: ShapesText,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.block_frames = model.config.block_frames
        if any(length % self.block_frames for length in config.lengths):
            raise ConfigError(
                f"lengths are {list(config.lengths)}; each must be whole blocks of {self.block_frames} frames."
            )
        self.model, self.text = model.to(self.device).train(), text
        self.text.encoder.to(self.device).train()
        self.codec = load_group_codec(config.codec)
        console = Console(stderr=True)
        self.clips = SceneSampler(
            config,
            self.codec,
            block_frames=self.block_frames,
            say=lambda line: console.print(line, highlight=False),
        )

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The loss of one batch, differentiable."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Transformer and text encoder; matrices decay, the rest does not."""
        return part_groups(self.model, self.text)

    def sample(self, frames: int, draw: torch.Generator) -> SceneBatch:
        """A batch of clips of this many latent frames."""
        return self.clips.sample(self.config.batch_frames // frames, frames, draw)

    def roll_out(self, text: Float[Tensor, "batch words width"], frames: int, *, seed: int = 0) -> Tensor:
        """Latents ``[B, C, F, h, w]`` that the model generates with its own memory, sampled as it is exported."""
        _, _, _, height, width = self.clips.longer.latents.shape
        return roll_out(self.model, text, RolloutSpec(self.generation(), height, width, frames, seed))

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Scores of rollouts of held-out prompts, by the ground-truth evaluator."""
        self.model.eval()
        scenes = sample_scenes(self.config.evaluation_clips, seed=_HELD_OUT_SEED)
        text = self.text.encode_captions(captions_of(scenes))
        latents = self.roll_out(text, self.config.evaluation_frames).cpu()
        readings = [read(self.codec.decode(clip[None])[0].clamp(-1, 1)) for clip in latents]
        shares = score_readings(readings, requests_of(scenes))
        self.model.train()
        return {name: share.value for name, share in shares.items() if not math.isnan(share.value)}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """A pipeline's folder: half precision ``transformer`` and ``text``, the codec, and how to sample from them."""
        with atomic_folder(folder, replace=True, keep=True) as partial:
            self.write_export(partial)

    def write_export(self, folder: Path) -> None:
        """Fill an empty folder with it."""
        half = CausalWanTransformer3DModel.from_config(self.model.config)
        half.load_state_dict(self.model.state_dict())
        cast_model(half, torch.float16).save_pretrained(folder / TRANSFORMER)
        self.text.save_pretrained(folder / TEXT)
        shutil.copytree(self.config.codec, folder / CODEC, dirs_exist_ok=True)
        settings = {"text": "shapes", **self.generation().to_mapping()}
        write_atomically(folder / GENERATION, (json.dumps(settings, indent=1) + "\n").encode())

    def generation(self) -> GenerationSettings:
        """How the model is sampled."""
        config = self.config
        return GenerationSettings(
            steps=config.steps,
            first_block_steps=config.first_block_steps,
            first_block_fresh_below=config.first_block_fresh_below,
            shift=config.shift,
            window=self.model.config.window,
            height=WORLD_SIZE,
            width=WORLD_SIZE,
        )


def part_groups(
    model: CausalWanTransformer3DModel, text: ShapesText, *, name: str = "", learning_rate_scale: float = 1.0
) -> list[ParameterGroup]:
    """All parameters of a transformer and a text encoder, as ``groups_by_decay``."""
    named = {f"transformer.{n}": p for n, p in model.named_parameters()}
    named |= {f"text.{n}": p for n, p in text.encoder.named_parameters()}
    return groups_by_decay(named, weight_decay=WEIGHT_DECAY, name=name, learning_rate_scale=learning_rate_scale)

"""The teacher task: the causal Wan transformer learns the shapes world by flow matching with teacher forcing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from arl2.diffusion.flow import add_noise, clean_to_velocity, velocity_to_clean
from arl2.diffusion.levels import shift_sigma
from arl2.errors import ConfigError
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import GenerationSettings
from arl2.shapes.captions import captions_of
from arl2.shapes.hiding import RUN
from arl2.shapes.oracle import read
from arl2.shapes.palette import WORLD_SIZE
from arl2.shapes.request import requests_of
from arl2.shapes.scoring import score_readings
from arl2.shapes.text import ShapesText
from arl2.shapes.world import sample_scenes
from arl2.training.coupling import near_object, paired_noise
from arl2.training.guidance import Autoguidance, load_export
from arl2.training.loop import LoopConfig
from arl2.training.scene_clips import SceneBatch, SceneClips
from arl2.training.start import start_run_from_words
from arl2.training.task import Batch, Loss, ParameterGroup
from arl2.video.group_codec import GroupCodec

# Prompts of evaluation come from a seed that no training run uses.
_HELD_OUT_SEED = 2**40 + 2
# How noisy the copies are from which a model makes its own context.
_OWN_CONTEXT_LEVELS = (0.3, 0.85)


@dataclass(frozen=True, kw_only=True)
class TeacherModelConfig:
    """Sizes of the transformer: see ``CausalWanTransformer3DModel``. The defaults have 1.3 M parameters."""

    layer_plan: str = "SSSS"
    num_attention_heads: int = 4
    attention_head_dim: int = 32
    ffn_dim: int = 384
    freq_dim: int = 64
    text_dim: int = 64
    text_len: int = 16
    block_frames: int = 3
    window: int | None = 21


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of a teacher run.

    Attributes:
        codec: folder of the codec; its encoder and statistics must not change afterwards.
        latents: folder in which encoded clips are kept, shared by runs.
        start_from: folder of an earlier run's export to go on from; its sizes then replace ``model``.
        clips: encoded clips to learn from; ``clip_frames`` latent frames each.
        opening_clips: encoded clips of a single block (of the next seed): a stream's first block has only the prompt to
            go by, and wants many more examples than the blocks that follow.
        hiding_clips: encoded clips whose object is hidden for a while and whose captions leave its colour out (see
            ``arl2.shapes.hiding``); ``hiding_share`` of the batches of more than one block come from them.
        data_seed: of the scenes.
        lengths: latent frames of a training clip; each batch draws one of them. A single block first (48 tokens, where
            shapes are learnt), longer ones later.
        batch_frames: latent frames in a batch: so many clips as fit.
        shift: of the noise levels, in training and in sampling.
        paired_share: share of the opening blocks that train at pure noise, which is then paired with its clip (see
            ``arl2.training.coupling``): what makes the first of few levels draw something. 0 pairs nothing.
        level_share: share of the blocks that train at exactly one of the sampler's own levels; the rest anywhere.
        own_context_share: share of the longer batches whose context is not the clips but what the model makes of noisy
            copies of them: a rollout stands on the model's own blocks, and learns here to mend them.
        guide: folder of a weaker model's export: opening blocks then learn the guided flow of ``start_from`` and it
            (see ``arl2.training.guidance``) in place of the data's; ``guide_weight`` is how strongly.
        guide_data: the data's flow and the push of the guide in place of the model's guided flow: slower, but it goes
            on learning from the data.
        guide_longer: push the later blocks of longer clips as well (the data's flow and the push).
        content_weight: extra weight of the loss where a latent differs from its clip's background.
        push_above: noise level from which on the flow is bent on purpose: by the guide, and by weights that go by where
            the clip has content. Below it weights go by what the model predicts, which bends nothing: a guide for all
            levels draws more objects and blurs their shapes (guidance in an interval, arXiv 2404.07724). 0: bent at all
            levels.
        steps, first_block_steps, first_block_fresh_below: of the sampler in evaluation, and what is exported with the
            model.
        evaluation_clips, evaluation_frames: of the rollouts that the oracle scores.
    """

    loop: LoopConfig
    codec: str
    latents: str = "runs/latents"
    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    start_from: str | None = None
    clips: int = 8192
    clip_frames: int = 27
    opening_clips: int = 0
    hiding_clips: int = 0
    hiding_share: float = 0.5
    data_seed: int = 1
    lengths: tuple[int, ...] = (3,)
    batch_frames: int = 192
    shift: float = 3.0
    paired_share: float = 0.0
    level_share: float = 0.0
    own_context_share: float = 0.0
    guide: str | None = None
    guide_weight: float = 1.0
    guide_data: bool = False
    guide_longer: bool = False
    content_weight: float = 2.0
    push_above: float = 0.0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_block_steps: tuple[int, ...] | None = None
    first_block_fresh_below: float = 1.0
    evaluation_clips: int = 24
    evaluation_frames: int = 9

    def __post_init__(self) -> None:
        if not self.lengths or any(n % self.model.block_frames or n > self.clip_frames for n in self.lengths):
            raise ConfigError(
                f"lengths are {list(self.lengths)}; each must be whole blocks of {self.model.block_frames} frames "
                f"and at most clip_frames = {self.clip_frames}."
            )
        if self.batch_frames < max(self.lengths):
            raise ConfigError(f"batch_frames = {self.batch_frames} is less than the longest clip, {max(self.lengths)}.")
        if self.hiding_clips % RUN:
            raise ConfigError(f"hiding_clips is {self.hiding_clips}; give a multiple of {RUN}.")
        if self.guide is not None and self.start_from is None:
            raise ConfigError("A guide is the weaker of two models; give start_from, the better one, as well.")
        for name, share in (
            ("level_share", self.level_share),
            ("paired_share", self.paired_share),
            ("hiding_share", self.hiding_share),
            ("own_context_share", self.own_context_share),
            ("push_above", self.push_above),
        ):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; give a share from 0 to 1.")


class TeacherTask:
    """Trains a transformer and its text encoder; implements ``arl2.training.task.Task``."""

    def __init__(self, config: TeacherConfig, *, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.codec = GroupCodec.from_pretrained(config.codec, torch_dtype=torch.float32).eval()
        if config.start_from is None:
            torch.manual_seed(config.loop.seed)  # modules draw their first weights from the global generator
            self.model = _fresh_model(config)
            self.text = ShapesText.build(width=config.model.text_dim, seed=config.loop.seed)
        else:
            self.model, self.text = load_export(Path(config.start_from))
        self.model.to(self.device).train()
        self.text.words.encoder.to(self.device).train()
        console = Console(stderr=True)
        self.clips = SceneClips(
            self.codec,
            Path(config.latents),
            clips=config.clips,
            frames=config.clip_frames,
            openings=config.opening_clips,
            block_frames=config.model.block_frames,
            hiding=config.hiding_clips,
            hiding_share=config.hiding_share,
            seed=config.data_seed,
            say=lambda line: console.print(line, highlight=False),
        )
        self.guidance: Autoguidance | None = None
        if config.guide is not None and config.start_from is not None:
            self.guidance = Autoguidance(
                Path(config.start_from), Path(config.guide), weight=config.guide_weight, device=self.device
            )
        self.levels = torch.tensor(self._generation().sampler().levels_of(1)) / 1000

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Transformer and text encoder; matrices decay, the rest does not."""
        named = {f"transformer.{n}": p for n, p in self.model.named_parameters()}
        named |= {f"text.{n}": p for n, p in self.text.words.encoder.named_parameters()}
        matrices = {
            n: p
            for n, p in named.items()
            if p.dim() == 2 and n.startswith("transformer.layers") and not n.endswith("modulation")
        }
        rest = {n: p for n, p in named.items() if n not in matrices}
        return [ParameterGroup(matrices, weight_decay=0.01, hidden=True), ParameterGroup(rest)]

    def loss(self, batch: Batch) -> Loss:
        """Mean square error of the flow, one noise level a block, earlier blocks given clean."""
        config, draw = self.config, batch.generator
        frames = config.lengths[int(torch.randint(len(config.lengths), (1,), generator=draw))]
        size = config.model.block_frames
        clips = self.clips.draw(config.batch_frames // frames, frames, draw)
        clean = clips.clean.to(self.device)
        text = self.text.encode_captions(clips.captions)

        levels = self._noise_levels(len(clean), frames // size, draw)
        noise = torch.randn(clean.shape, generator=draw)
        if config.paired_share:
            self._pair(noise, clips, levels, draw)
        noise, sigma = noise.to(self.device), levels.repeat_interleave(size, 1)
        noisy = add_noise(clean, noise, sigma[:, None, :, None, None])
        timestep = (1000 * sigma).to(self.device)
        run: DiffusionForcing | TeacherForcing = DiffusionForcing()
        if frames != size:
            run = TeacherForcing(self._context(clean, text, draw))
        flow = self.model(noisy, timestep, text, run=run)
        assert flow is not None

        broad = sigma[:, None, :, None, None].to(self.device)
        bent = broad >= config.push_above
        target = clean_to_velocity(clean, noise)
        if self.guidance is not None and frames == size:
            target = self._guided(self.guidance, target, noisy, timestep, clips.captions, bent.flatten(1)[:, 0])
        elif self.guidance is not None and config.guide_longer:
            target = target + bent * self.guidance.push(noisy, timestep, clips.captions, run)
        error = (flow - target).square().mean(1)
        # Weights that the model could not know bend the flow towards content; its own estimate is known to it.
        told = torch.where(bent, clean, velocity_to_clean(noisy, flow.detach(), broad))
        weight = 1 + config.content_weight * _differs_from_background(told)
        # A clip cut from the middle begins with a block whose past is missing: it is context, not a target. So is the
        # opening block of a longer clip where a guide says what openings are taught.
        taught = clips.from_start
        if self.guidance is not None and frames != size:
            taught = torch.zeros_like(taught)
        weight[:, :size] *= taught[:, None, None, None].to(weight)
        value = (weight * error).sum() / weight.sum()
        return Loss(value, len(clean), {"flow": error.detach().mean()})

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """What the oracle says of rollouts of held-out prompts."""
        config = self.config
        self.model.eval()
        scenes = sample_scenes(config.evaluation_clips, seed=_HELD_OUT_SEED)
        text = self.text.encode_captions(captions_of(scenes))
        _, _, _, height, width = self.clips.longer.latents.shape
        sampler = self._generation().sampler()
        blocks = generate_blocks(
            self.model,
            text,
            noise=SeededNoise.for_batch(0, len(scenes)),
            sampler=sampler,
            height=height,
            width=width,
            frames=config.evaluation_frames,
        )
        latents = torch.cat([block.latents for block in blocks], dim=2).cpu()
        readings = [read(self.codec.decode(clip[None])[0].clamp(-1, 1)) for clip in latents]
        shares = score_readings(readings, requests_of(scenes))
        self.model.train()
        return {name: share.value for name, share in shares.items() if not math.isnan(share.value)}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Half precision ``transformer`` and ``text`` folders, and how to sample from them."""
        half = CausalWanTransformer3DModel.from_config(self.model.config)
        half.load_state_dict(self.model.state_dict())
        cast_model(half, torch.float16).save_pretrained(folder / "transformer")
        self.text.save_pretrained(folder / "text")
        settings = {"text": "shapes", **self._generation().to_mapping()}
        (folder / "generation.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def _generation(self) -> GenerationSettings:
        config = self.config
        return GenerationSettings(
            steps=config.steps,
            first_block_steps=config.first_block_steps,
            first_block_fresh_below=config.first_block_fresh_below,
            shift=config.shift,
            window=config.model.window,
            height=WORLD_SIZE,
            width=WORLD_SIZE,
        )

    def _guided(
        self,
        guidance: Autoguidance,
        target: Float[Tensor, "clips channels frames height width"],
        noisy: Tensor,
        timestep: Tensor,
        captions: list[str],
        bent: Bool[Tensor, " clips"],
    ) -> Float[Tensor, "clips channels frames height width"]:
        """What opening blocks are taught: the guided flow where it is bent, the data's elsewhere."""
        rows = bent.nonzero().flatten().tolist()
        if not rows:
            return target
        asked = noisy[rows], timestep[rows], [captions[row] for row in rows]
        guided = target.clone()
        guided[rows] = target[rows] + guidance.push(*asked) if self.config.guide_data else guidance.flow(*asked)
        return guided

    def _noise_levels(self, clips: int, blocks: int, draw: torch.Generator) -> Float[Tensor, "clips blocks"]:
        """One for every block: anywhere on the shifted schedule, or one of the sampler's own."""
        anywhere = shift_sigma(torch.rand(clips, blocks, generator=draw), self.config.shift)
        if not self.config.level_share:
            return anywhere
        own = self.levels[torch.randint(len(self.levels), (clips, blocks), generator=draw)]
        return torch.where(torch.rand(clips, blocks, generator=draw) < self.config.level_share, own, anywhere)

    def _context(self, clean: Tensor, text: Tensor, draw: torch.Generator) -> Tensor:
        """What stands before the noisy blocks: the clips, or what the model itself makes of noisy copies of them."""
        if not self.config.own_context_share:
            return clean
        # The whole batch or none of it: the extra pass is paid where it is used.
        if float(torch.rand((), generator=draw)) >= self.config.own_context_share:
            return clean
        low, high = _OWN_CONTEXT_LEVELS
        size = self.config.model.block_frames
        levels = low + (high - low) * torch.rand(len(clean), clean.shape[2] // size, generator=draw)
        sigma = levels.repeat_interleave(size, 1)
        broad = sigma[:, None, :, None, None].to(self.device)
        noisy = add_noise(clean, torch.randn(clean.shape, generator=draw).to(self.device), broad)
        with torch.no_grad():
            flow = self.model(noisy, (1000 * sigma).to(self.device), text, run=TeacherForcing(clean))
        assert flow is not None
        return velocity_to_clean(noisy, flow, broad)

    def _pair(self, noise: Tensor, clips: SceneBatch, levels: Tensor, draw: torch.Generator) -> None:
        """Put a share of the opening blocks at pure noise, paired with their clips; in place."""
        paired = clips.from_start & (torch.rand(len(noise), generator=draw) < self.config.paired_share)
        size, (height, width) = self.config.model.block_frames, noise.shape[-2:]
        factor = self.codec.temporal_factor
        near = near_object(clips.scenes.select(paired), size, height, width, temporal_factor=factor)
        opening = clips.clean[:, :, :size]
        noise[paired, :, :size] = paired_noise(noise[paired, :, :size], opening[paired], near, draw)
        levels[paired, 0] = 1.0


def _fresh_model(config: TeacherConfig) -> CausalWanTransformer3DModel:
    """Seeded weights with a silent head, so that training starts from the mean and not from noise."""
    sizes = vars(config.model)
    model = CausalWanTransformer3DModel(**sizes)
    with torch.no_grad():
        model.head.proj.weight.zero_()
        model.head.proj.bias.zero_()
    return model


def _differs_from_background(
    clean: Float[Tensor, "clips channels frames height width"],
) -> Float[Tensor, "clips frames height width"]:
    """1 where a latent is far from its clip's median (object, wall, edges), 0 on the plain background."""
    median = clean.flatten(2).median(-1).values[..., None, None, None]
    return ((clean - median).square().mean(1) > 0.15).float()


if __name__ == "__main__":
    start_run_from_words(TeacherConfig, lambda config, device: TeacherTask(config, device=device))

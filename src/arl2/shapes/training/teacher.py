"""The teacher task: the causal Wan transformer learns the shapes world by flow matching with teacher forcing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.diffusion.flow import add_noise, clean_to_velocity, velocity_to_clean
from arl2.diffusion.schedule import shift_sigma
from arl2.errors import ConfigError
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.shapes.prompts.text import ShapesText
from arl2.shapes.training.captioned import load_export
from arl2.shapes.training.guidance import Autoguidance
from arl2.shapes.training.task import ShapesConfig, ShapesTask
from arl2.training.engine.config import check_share
from arl2.training.engine.task import Batch, Loss

# How noisy the copies are from which a model makes its own context.
_OWN_CONTEXT_SIGMAS = (0.3, 0.85)


@dataclass(frozen=True, kw_only=True)
class TeacherModelConfig:
    """Sizes of the transformer, as of ``CausalWanTransformer3DModel``. The defaults have 1.3 M parameters.

    Attributes:
        layer_plan: one letter a layer.
        num_attention_heads, attention_head_dim: of every layer.
        ffn_dim: width of the feed-forward layers.
        freq_dim: width of the timestep embedding.
        text_dim, text_len: width and number of the prompt embeddings.
        block_frames: latent frames of a block.
        window: latent frames that softmax layers attend to; null for the whole past.
    """

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
class TeacherConfig(ShapesConfig):
    """Settings of a teacher run, beside those of ``ShapesConfig``.

    ``own_context_share`` of the longer batches have as context what the model predicts from noisy copies of the clips.

    Attributes:
        model: sizes of a fresh model.
        start_from: folder of an earlier run's export, or an embedded model's name, to continue from; its sizes then
            replace ``model``.
        guide: folder of a weaker model's export: first blocks then learn the guided flow of ``start_from`` and it
            (see ``arl2.shapes.training.guidance``) in place of the data's.
        guide_weight: strength of the guide.
        guide_data: the data's flow plus the push of the guide in place of the guided flow, so that the model still
            learns from the data.
        guide_longer: push the later blocks of longer clips as well (the data's flow and the push).
        content_weight: extra weight of the loss where a latent differs from its clip's background.
        push_above: sigma from which on the flow is bent on purpose: by the guide, and by weights that follow where the
            clip has content. Below it weights follow what the model predicts, which bends nothing: a guide at all
            timesteps gives more objects with blurred shapes (guidance in an interval, arXiv 2404.07724). 0: all.
    """

    RETIRED: ClassVar[Mapping[str, Any]] = {"paired_share": 0.0, "level_share": 0.0}

    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    start_from: str | None = None
    guide: str | None = None
    guide_weight: float = 1.0
    guide_data: bool = False
    guide_longer: bool = False
    content_weight: float = 2.0
    push_above: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide is not None and self.start_from is None:
            raise ConfigError("A guide is the weaker of two models; give start_from, the better one, as well.")
        check_share("push_above", self.push_above)


class TeacherTask(ShapesTask[TeacherConfig]):
    """Trains a transformer and its text encoder; implements ``arl2.training.engine.task.Task``."""

    def __init__(self, config: TeacherConfig, *, device: torch.device | str = "cpu") -> None:
        if config.start_from is None:
            torch.manual_seed(config.loop.seed)  # modules draw their first weights from the global generator
            model = _fresh_model(config)
            text = ShapesText.build(width=config.model.text_dim, seed=config.loop.seed)
        else:
            model, text = load_export(config.start_from)
        super().__init__(config, model, text, device=device)
        self.guidance: Autoguidance | None = None
        if config.guide is not None and config.start_from is not None:
            self.guidance = Autoguidance(
                config.start_from, config.guide, weight=config.guide_weight, device=self.device
            )
        self.levels = torch.tensor(self.generation().sampler().timesteps_of(1)) / 1000

    def loss(self, batch: Batch) -> Loss:
        """Mean square error of the flow, one timestep a block, earlier blocks given clean."""
        config, draw = self.config, batch.generator
        frames = config.lengths[int(torch.randint(len(config.lengths), (1,), generator=draw))]
        clips, size = self.sample(frames, draw), self.block_frames
        clean = clips.clean.to(self.device)
        text = self.text.encode_captions(clips.captions)

        sigma = shift_sigma(torch.rand(len(clean), frames // size, generator=draw), config.shift)
        sigma = sigma.repeat_interleave(size, 1).to(self.device)
        noise = torch.randn(clean.shape, generator=draw).to(self.device)
        noisy = add_noise(clean, noise, sigma[:, None, :, None, None])
        timestep = 1000 * sigma
        run: DiffusionForcing | TeacherForcing = DiffusionForcing()
        if frames != size:
            run = TeacherForcing(self._context(clean, text, draw))
        flow = self.model(noisy, timestep, text, run=run)

        broad = sigma[:, None, :, None, None]
        bent = broad >= config.push_above
        target = clean_to_velocity(clean, noise)
        if self.guidance is not None and frames == size:
            target = self._guided(self.guidance, target, noisy, timestep, clips.captions, bent.flatten(1)[:, 0])
        elif self.guidance is not None and config.guide_longer:
            target = target + bent * self.guidance.push(noisy, timestep, clips.captions, run)
        error = (flow - target).square().mean(1)
        # Weights that the model could not know bend the flow towards content; its own estimate is known to it.
        shown = torch.where(bent, clean, velocity_to_clean(noisy, flow.detach(), broad))
        weight = 1 + config.content_weight * _differs_from_background(shown)
        # A clip cut from the middle begins with a block whose past is missing: it is context, not a target. So is the
        # first block of a longer clip where first blocks are taught otherwise: by a guide, or by chosen ones.
        taught = clips.from_start
        if frames != size and (self.guidance is not None or config.opening_shows):
            taught = torch.zeros_like(taught)
        weight[:, :size] *= taught[:, None, None, None].to(weight)
        value = (weight * error).sum() / weight.sum()
        return Loss(value, len(clean), {"flow": error.detach().mean()})

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

    def _context(self, clean: Tensor, text: Tensor, draw: torch.Generator) -> Tensor:
        """What stands before the noisy blocks: the clips, or what the model itself makes of noisy copies of them."""
        if not self.config.own_context_share:
            return clean
        # The whole batch or none of it: the extra pass is paid where it is used.
        if float(torch.rand((), generator=draw)) >= self.config.own_context_share:
            return clean
        low, high = _OWN_CONTEXT_SIGMAS
        size = self.block_frames
        sigma = low + (high - low) * torch.rand(len(clean), clean.shape[2] // size, generator=draw)
        sigma = sigma.repeat_interleave(size, 1)
        broad = sigma[:, None, :, None, None].to(self.device)
        noisy = add_noise(clean, torch.randn(clean.shape, generator=draw).to(self.device), broad)
        with torch.no_grad():
            flow = self.model(noisy, (1000 * sigma).to(self.device), text, run=TeacherForcing(clean))
        return velocity_to_clean(noisy, flow, broad)


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
    """1 where a latent is far from its clip's median (object, occluder, edges), 0 on the plain background."""
    median = clean.flatten(2).median(-1).values[..., None, None, None]
    return ((clean - median).square().mean(1) > 0.15).float()

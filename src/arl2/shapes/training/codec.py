"""Trains the codec of the shapes world: reconstruct rendered clips through noisy latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.files.atomic import atomic_folder
from arl2.shapes.codec import GroupCodec, load_group_codec
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.task import Batch, Loss, ParameterGroup

# Clips of evaluation and of the latent statistics come from seeds that no training run uses.
_HELD_OUT_SEED = 2**40
_STATISTICS_SEED = 2**40 + 1


@dataclass(frozen=True, kw_only=True)
class CodecModelConfig:
    """Sizes of the codec, as of ``GroupCodec``.

    Attributes:
        group_frames: video frames of a latent frame.
        latent_channels: channels of a latent.
        width: channels of the convolutions at a quarter of the resolution.
        deep_width: channels at an eighth.
        depth: residual blocks at each resolution.
    """

    group_frames: int = 4
    latent_channels: int = 16
    width: int = 64
    deep_width: int = 96
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Settings of a codec run.

    Attributes:
        model: sizes of a fresh codec.
        start_from: folder of a codec to continue from; its sizes then replace ``model``.
        train_encoder: false trains the decoder alone, which keeps latents and their statistics.
        clips: rendered clips in a batch.
        latent_frames: of each of them.
        crop: side of the random square crops, in pixels.
        starts: share of batches that begin where a stream begins, with a latent frame of a single video frame.
        speed_range: of the objects, in pixels a video frame; far faster than in the world, as a codec that repeats one
            frame four times scores well on slow clips.
        still_clips: share of clips without motion.
        latent_noise: standard deviation of the noise on raw latents, reached after ``noise_warmup`` steps.
        noise_warmup: steps over which it grows from 0.
        difference_weight: of the loss on differences of neighbouring video frames, relative to that on the frames.
        latent_weight: weight of the mean square of raw latents in the loss.
        evaluation_clips: held-out clips.
        evaluation_video_frames: video frames of each of them.
    """

    loop: LoopConfig
    model: CodecModelConfig = field(default_factory=CodecModelConfig)
    start_from: str | None = None
    train_encoder: bool = True
    clips: int = 12
    latent_frames: int = 2
    starts: float = 0.25
    crop: int = 32
    speed_range: tuple[float, float] = (0.5, 4.0)
    still_clips: float = 0.08
    latent_noise: float = 0.05
    noise_warmup: int = 1000
    difference_weight: float = 1.0
    latent_weight: float = 1e-4
    evaluation_clips: int = 24
    evaluation_video_frames: int = 81


class CodecTask:
    """Trains a ``GroupCodec``; implements ``arl2.training.engine.task.Task``."""

    def __init__(self, config: CodecConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        if config.start_from is None:
            if not config.train_encoder:
                raise ConfigError("train_encoder = false needs an encoder: name a codec's folder in start_from.")
            self.codec = GroupCodec(**vars(config.model))
            self.codec.init_weights(torch.Generator().manual_seed(config.loop.seed))
        else:
            self.codec = load_group_codec(config.start_from)
        self.codec.to(device).train()
        self.codec.encoder.requires_grad_(config.train_encoder)
        self.device = torch.device(device)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Decoder, and encoder if it trains."""
        return [ParameterGroup({n: p for n, p in self.codec.named_parameters() if p.requires_grad})]

    def loss(self, batch: Batch) -> Loss:
        """Error of video frames and of their differences, absolute and squared; outputs are not clamped."""
        config = self.config
        from_start = torch.rand((), generator=batch.generator).item() < config.starts
        video = self._training_clips(batch, self.codec.frames_of(0 if from_start else 1, config.latent_frames))
        raw = self.codec.encode_parallel(video, from_start=from_start)
        noise = torch.randn(raw.shape, generator=batch.generator).to(raw)
        spread = config.latent_noise * min(1.0, batch.step / max(config.noise_warmup, 1))
        error = self.codec.decode_parallel(raw + spread * noise, from_start=from_start) - video
        frames = _absolute_and_square(error)
        difference = _absolute_and_square(error.diff(dim=2))
        value = frames + config.difference_weight * difference + config.latent_weight * raw.square().mean()
        logs = {"picture": frames, "difference": difference, "latent_rms": raw.square().mean().sqrt()}
        return Loss(value, config.clips, logs)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """PSNR in dB of held-out clips at the world's own speeds, and at four times these."""
        self.codec.eval()
        scores = {}
        for name, speeds in (("", (0.8, 1.4)), ("_fast", (3.2, 5.6))):
            scenes = sample_scenes(self.config.evaluation_clips, seed=_HELD_OUT_SEED, speed_range=speeds)
            video = render(scenes, self.config.evaluation_video_frames).to(self.device)
            decoded = torch.cat([self._reconstruct(clip) for clip in video.split(4)])
            scores[f"psnr{name}"] = psnr(decoded, video)
            scores[f"difference_psnr{name}"] = psnr(decoded.diff(dim=2), video.diff(dim=2))
        self.codec.train()
        return scores

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """A half precision ``from_pretrained`` folder, with the latent statistics measured if the encoder trained."""
        if self.config.train_encoder:
            self._measure_latents()
        config = self.codec.config
        # Named again: diffusers takes a value that was a default at first for a default still.
        shipped = GroupCodec.from_config(config, latents_mean=config.latents_mean, latents_std=config.latents_std)
        shipped.load_state_dict(self.codec.state_dict())
        for parameter in shipped.parameters():
            parameter.data = parameter.data.half()
        with atomic_folder(folder, replace=True, keep=True) as partial:
            shipped.save_pretrained(partial)

    def _training_clips(
        self, batch: Batch, frames: int
    ) -> Float[Tensor, "clips 3 {frames} {self.config.crop} {self.config.crop}"]:
        config = self.config
        first = batch.index * config.clips
        scenes = sample_scenes(config.clips, seed=config.loop.seed, first=first, speed_range=config.speed_range)
        still = torch.rand(config.clips, generator=batch.generator) < config.still_clips
        scenes = replace(scenes, speed=scenes.speed.masked_fill(still, 0.0))
        room = WORLD_SIZE - config.crop + 1
        top, left = (int(x) for x in torch.randint(room, (2,), generator=batch.generator))
        return render(scenes, frames, crop=(top, left, config.crop, config.crop)).to(self.device)

    def _reconstruct(self, video: Tensor) -> Tensor:
        return self.codec.decode_parallel(self.codec.encode_parallel(video)).clamp(-1, 1)

    def _measure_latents(self) -> None:
        scenes = sample_scenes(128, seed=_STATISTICS_SEED)
        parts = [scenes.select(slice(first, first + 8)) for first in range(0, len(scenes), 8)]
        raw = torch.cat([self.codec.encode_parallel(render(part, 33).to(self.device)) for part in parts])
        mean, std = raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4))
        self.codec.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def psnr(decoded: Float[Tensor, "*axes"], true: Float[Tensor, "*axes"]) -> float:
    """Peak signal-to-noise ratio in dB, the peak being 2 (pixels in [-1, 1]); of differences with the same peak."""
    return float(10 * torch.log10(4 / (decoded - true).square().mean()))


def _absolute_and_square(error: Tensor) -> Tensor:
    return error.abs().mean() + 2 * error.square().mean()

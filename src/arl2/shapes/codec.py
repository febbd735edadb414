"""The embedded codec: groups of video frames, each encoded alone, each decoded with the group before it in view.

It is shallow and wide at low resolution, with a straight path from pixels to latents and back: minutes on a CPU teach
it what the chains of ``arl2.video.tiny_codec`` need hours for. All a stream remembers is the last latent frame.
"""

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arl2.bases.models import ConfigMixin, ModelMixin, register_to_config
from arl2.errors import CheckpointError
from arl2.files.parts import load_part
from arl2.geometry import video_frames_of
from arl2.video.codec import CodecCache, Latents, Side, Video
from arl2.video.streaming import LatentStatistics, require_channels, require_same_picture, whole_groups

# Space is folded by 4 at once and then halved by one strided convolution.
_PATCH, _SPATIAL_FACTOR = 4, 8


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a straight path; the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return x + self.second(F.silu(self.first(F.silu(x))))


class GroupCodec(ModelMixin, ConfigMixin):
    """The codec; implements ``arl2.video.codec.VideoCodec``. A side shrinks by 8, and 4 video frames become a latent.

    Args:
        group_frames: video frames of a latent frame; the first of a stream stands for one, which is repeated.
        latent_channels: channels of a latent.
        width: channels at a quarter of the size; ``deep_width`` at an eighth.
        depth: residual layers of the encoder at each of the two sizes; the decoder has one more.
        latents_mean, latents_std: per channel, of the raw latents: what leaves ``encode`` is normalised by them.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        group_frames: int = 4,
        latent_channels: int = 16,
        width: int = 64,
        deep_width: int = 96,
        depth: int = 1,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.statistics = LatentStatistics(latent_channels, latents_mean, latents_std)
        pixels = 3 * group_frames * _PATCH**2
        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, width, 3, padding=1),
            *(Residual(width) for _ in range(depth)),
            nn.Conv2d(width, deep_width, 2, stride=2),
            *(Residual(deep_width) for _ in range(depth)),
            nn.SiLU(),
            nn.Conv2d(deep_width, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * latent_channels, deep_width, 3, padding=1),
            *(Residual(deep_width) for _ in range(depth + 1)),
            nn.Conv2d(deep_width, 4 * width, 1),
            nn.PixelShuffle(2),
            *(Residual(width) for _ in range(depth + 1)),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
        )

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    @property
    def spatial_factor(self) -> int:
        """Video pixels a latent pixel stands for, along each side."""
        return _SPATIAL_FACTOR

    @property
    def temporal_factor(self) -> int:
        """Video frames a latent frame stands for, except the first of a stream, which stands for one."""
        return self.config.group_frames

    def init_weights(self, generator: torch.Generator) -> None:
        """Weights to train from."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(module.get_parameter("bias"))
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.second.weight)

    def new_cache(self, side: Side = "decoder") -> CodecCache:
        """An empty cache: the start of a stream."""
        return CodecCache(side)

    def frames_of(self, first_frame: int, latent_frames: int) -> int:
        """Video frames of ``latent_frames`` latent frames, the first of which has index ``first_frame``."""
        return video_frames_of(first_frame, latent_frames, self.temporal_factor)

    def encode(self, video: Video, cache: CodecCache | None = None) -> Latents:
        """Normalised latents, latent frame by latent frame, so that any split of a stream gives the same bits.

        Args:
            video: values in [-1, 1]. The first call of a stream takes ``1 + temporal_factor * n`` video frames,
                later ones a multiple of ``temporal_factor``; sides are multiples of 8.
            cache: from ``new_cache("encoder")``; updated. None: the video is a whole clip.
        """
        cache = self.new_cache("encoder") if cache is None else cache
        cache.require("encoder")
        groups = self._whole_groups(video, from_start=cache.latent_frames == 0).split(self.temporal_factor, dim=2)
        cache.latent_frames += len(groups)
        return self.statistics.normalise(torch.cat([self._encode_groups(group) for group in groups], dim=2))

    def decode(self, latents: Latents, cache: CodecCache | None = None) -> Video:
        """Video of normalised latents, one latent frame at a time: any split of a stream gives the same bits.

        Args:
            latents: as ``encode`` gives them, any number of latent frames.
            cache: from ``new_cache()``; updated. None: the latents are a whole clip.

        Returns:
            ``frames_of(index of the first latent frame, latent_frames)`` video frames, not clamped to [-1, 1].
        """
        require_channels(latents, self.latent_channels)
        cache = self.new_cache() if cache is None else cache
        cache.require("decoder")
        video = []
        for latent in self.statistics.denormalise(latents).split(1, dim=2):
            previous = cache.features.get("previous", latent)
            require_same_picture(previous, latent)
            group = self._decode_groups(latent, previous)
            video.append(group if cache.latent_frames else group[:, :, self.temporal_factor - 1 :])
            # A copy: a slice would keep the whole clip in memory.
            cache.features["previous"] = latent.clone()
            cache.latent_frames += 1
        return torch.cat(video, dim=2)

    def encode_parallel(self, video: Video, *, from_start: bool = True) -> Latents:
        """Raw (not normalised) latents of a whole clip, all frames at once: for training. Equal up to rounding.

        Without ``from_start`` the clip is a piece of a stream, cut where a latent frame begins.
        """
        return self._encode_groups(self._whole_groups(video, from_start=from_start))

    def decode_parallel(self, raw_latents: Latents, *, from_start: bool = True) -> Video:
        """Video of raw latents, all frames at once: the other half of ``encode_parallel``."""
        previous = torch.cat((raw_latents[:, :, :1], raw_latents[:, :, :-1]), dim=2)
        video = self._decode_groups(raw_latents, previous)
        return video[:, :, self.temporal_factor - 1 :] if from_start else video

    def _whole_groups(self, video: Video, *, from_start: bool) -> Tensor:
        return whole_groups(
            video, from_start=from_start, spatial_factor=_SPATIAL_FACTOR, temporal_factor=self.temporal_factor
        )

    def _encode_groups(self, video: Tensor) -> Latents:
        frames, batch = self.temporal_factor, video.shape[0]
        pixels = rearrange(
            video, "b c (t f) (h p) (w q) -> (b t) (c p q f) h w", f=frames, p=_PATCH, q=_PATCH
        ).contiguous()
        return rearrange(self.encoder(pixels), "(b t) c h w -> b c t h w", b=batch)

    def _decode_groups(self, latents: Latents, previous: Latents) -> Tensor:
        frames, batch = self.temporal_factor, latents.shape[0]
        pairs = rearrange(torch.cat((previous, latents), dim=1), "b c t h w -> (b t) c h w").contiguous()
        return rearrange(
            self.decoder(pairs),
            "(b t) (c p q f) h w -> b c (t f) (h p) (w q)",
            b=batch,
            f=frames,
            p=_PATCH,
            q=_PATCH,
        )


def load_group_codec(folder: str | Path) -> GroupCodec:
    """The codec that a folder holds, in float32 and evaluation mode.

    Raises:
        CheckpointError: no such folder, no codec in it, or a damaged one.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"There is no folder '{folder}'; give the folder of a codec, such as a run's export.")
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(f"The folder '{folder}' holds no codec (no config.json); give a codec run's export.")
    codec: GroupCodec = load_part(GroupCodec, Path(folder), dtype=torch.float32)
    return codec

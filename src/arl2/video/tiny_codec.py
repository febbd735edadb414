"""The causal codec in the layout of the published tiny decoders of TAEHV (``taew2_1`` and its family).

Each direction is one chain of layers. Space is halved or doubled by strided convolutions and nearest
upsampling, time by 1x1 convolutions that merge or split neighbouring frames, and the only view of other frames
is a memory layer's look at its own previous input. So a stream needs one remembered frame for each of those layers.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from arl2.bases.models import ConfigMixin, ModelMixin, register_to_config
from arl2.errors import ConfigError
from arl2.files.exact import fill_exactly
from arl2.files.float8 import all_widened, without_scales
from arl2.files.tensors import read_tensors, require_weights
from arl2.geometry import video_frames_of
from arl2.video.codec import CodecCache, Latents, Side, Video
from arl2.video.layers import MemoryLayer, MergeFrames, SoftClamp, SplitFrame, conv3x3
from arl2.video.streaming import LatentStatistics, require_channels, require_same_picture, whole_groups
from arl2.video.tiny_layout import sizes_of_tensors, with_last_frames_alone


class TinyCodec(ModelMixin, ConfigMixin):
    """The codec; implements ``arl2.video.codec.VideoCodec``.

    Args:
        patch_size: pixels a side that are folded into channels before the first layer (published Wan 2.1 size: 1).
        latent_channels: channels of a latent.
        encoder_widths: channels of the stem and of the three stages (published: 64 each).
        decoder_widths: channels of the three stages and of the end (published: 256, 128, 64, 64).
        encoder_space: how much each encoder stage shrinks a side; ``encoder_time`` the same for frames.
        decoder_space: how much each decoder stage enlarges a side; ``decoder_time`` the same for frames.
        latents_mean, latents_std: per channel, of the raw latents: what leaves ``encode`` is normalised by them.
            The published weights give normalised latents already: 0 and 1.

    The defaults are the published sizes of ``taew2_1``, key names included; ``from_published`` loads such a file.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: int = 1,
        latent_channels: int = 16,
        encoder_widths: Sequence[int] = (64, 64, 64, 64),
        decoder_widths: Sequence[int] = (256, 128, 64, 64),
        encoder_space: Sequence[int] = (2, 2, 2),
        encoder_time: Sequence[int] = (2, 2, 1),
        decoder_space: Sequence[int] = (2, 2, 2),
        decoder_time: Sequence[int] = (1, 2, 2),
        memory_layers: int = 3,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.statistics = LatentStatistics(latent_channels, latents_mean, latents_std)
        self.spatial_factor = patch_size * math.prod(encoder_space)
        self.temporal_factor = math.prod(encoder_time)
        if (math.prod(encoder_space), math.prod(encoder_time)) != (math.prod(decoder_space), math.prod(decoder_time)):
            raise ConfigError(
                f"The decoder must undo the encoder, but space {tuple(encoder_space)} and time {tuple(encoder_time)} "
                f"became {tuple(decoder_space)} and {tuple(decoder_time)}: make their products equal."
            )
        pixels = 3 * patch_size**2

        layers: list[nn.Module] = [conv3x3(pixels, encoder_widths[0]), nn.ReLU()]
        for stage, (space, time) in enumerate(zip(encoder_space, encoder_time, strict=True)):
            before, after = encoder_widths[stage : stage + 2]
            layers += [MergeFrames(before, time), conv3x3(before, after, stride=space, bias=False)]
            layers += [MemoryLayer(after) for _ in range(memory_layers)]
        self.encoder = nn.Sequential(*layers, conv3x3(encoder_widths[-1], latent_channels))

        layers = [SoftClamp(), conv3x3(latent_channels, decoder_widths[0]), nn.ReLU()]
        for stage, (space, time) in enumerate(zip(decoder_space, decoder_time, strict=True)):
            before, after = decoder_widths[stage : stage + 2]
            layers += [MemoryLayer(before) for _ in range(memory_layers)]
            layers += [nn.Upsample(scale_factor=float(space)), SplitFrame(before, time)]
            layers += [conv3x3(before, after, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), conv3x3(decoder_widths[-1], pixels))

    @classmethod
    def from_published(cls, path: str | Path, *, torch_dtype: torch.dtype = torch.float32) -> "TinyCodec":
        """Load a published file of the family, such as ``taew2_1.pth``; it is read with code disabled.

        Decoding is what the published decoder does, to be clamped to [-1, 1] (it gives and clamps to [0, 1]). Encoding
        is not: the published encoder makes latent frame ``i`` of the video frames ``4 i`` to ``4 i + 3`` (a clip's end
        is filled up with its last frame), although it stands for ``4 i - 3`` to ``4 i``: it looks three video frames
        ahead. This causal codec gives the same weights the frames that have come, so its latents are off by that shift
        in time. Encode with ``arl2.video.wan_codec.WanCodec`` where that matters.

        Args:
            path: ``.pth`` or ``.safetensors``. The widths are read off the tensors.
            torch_dtype: to compute in.

        Raises:
            CheckpointError: a file that is missing, damaged, or not exactly one codec of this layout.
        """
        stored, scales = without_scales(read_tensors(Path(path)), str(path))
        require_weights(stored, str(path))
        tensors = all_widened(stored, scales)
        sizes = sizes_of_tensors(tensors, str(path))
        with torch.device("meta"):
            codec = cls(**sizes)
        fill_exactly(codec, with_last_frames_alone(tensors, codec.state_dict()), dtype=torch_dtype, where=str(path))
        return codec.eval()

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

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
                later ones a multiple of ``temporal_factor``; sides are multiples of ``spatial_factor``.
            cache: from ``new_cache("encoder")``; updated. None: the video is a whole clip.
        """
        cache = self.new_cache("encoder") if cache is None else cache
        cache.require("encoder")
        latents = []
        for group in self._whole_groups(video, from_start=cache.latent_frames == 0).split(self.temporal_factor, dim=2):
            latents.append(self._encode_groups(group, cache.features))
            cache.latent_frames += 1
        return self.statistics.normalise(torch.cat(latents, dim=2))

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
        for frame in self.statistics.denormalise(latents).split(1, dim=2):
            group = self._decode_groups(frame, cache.features)
            video.append(group if cache.latent_frames else group[:, :, self.temporal_factor - 1 :])
            cache.latent_frames += 1
        return torch.cat(video, dim=2)

    def encode_parallel(self, video: Video) -> Latents:
        """Raw (not normalised) latents of a whole clip, all frames at once: for training. Equal up to rounding."""
        return self._encode_groups(self._whole_groups(video, from_start=True), {})

    def decode_parallel(self, raw_latents: Latents) -> Video:
        """Video of raw latents of a whole clip, all frames at once: for training. Equal up to rounding."""
        return self._decode_groups(raw_latents, {})[:, :, self.temporal_factor - 1 :]

    def _whole_groups(self, video: Video, *, from_start: bool) -> Tensor:
        return whole_groups(
            video,
            from_start=from_start,
            spatial_factor=self.spatial_factor,
            temporal_factor=self.temporal_factor,
        )

    def _encode_groups(self, video: Tensor, features: dict[str, Tensor]) -> Latents:
        size, batch = self.config.patch_size, video.shape[0]
        pixels = rearrange(video * 0.5 + 0.5, "b c t (h p) (w q) -> (b t) (c p q) h w", p=size, q=size)
        latents = _run(self.encoder, pixels.contiguous(), batch, features)
        return rearrange(latents, "(b t) c h w -> b c t h w", b=batch)

    def _decode_groups(self, raw_latents: Latents, features: dict[str, Tensor]) -> Tensor:
        size, batch = self.config.patch_size, raw_latents.shape[0]
        x = rearrange(raw_latents, "b c t h w -> (b t) c h w").contiguous()
        pixels = _run(self.decoder, x, batch, features) * 2 - 1
        return rearrange(pixels, "(b t) (c p q) h w -> b c t (h p) (w q)", b=batch, p=size, q=size)


def _run(layers: nn.Sequential, x: Tensor, batch: int, features: dict[str, Tensor]) -> Tensor:
    """The chain over ``[batch * frames, channels, height, width]``; ``features`` is read and then updated.

    ``features`` holds, for each memory layer, the last frame that it saw; a missing one means zeros, which is how a
    stream starts.
    """
    for name, layer in layers.named_children():
        if not isinstance(layer, MemoryLayer):
            x = layer(x)
            continue
        by_clip = x.unflatten(0, (batch, -1))
        past = features.get(name, torch.zeros_like(by_clip[:, 0]))
        require_same_picture(past, by_clip[:, 0])
        # A copy: a slice would keep all frames of this call in memory.
        features[name] = by_clip[:, -1].clone()
        previous = torch.cat((past[:, None], by_clip[:, :-1]), dim=1).flatten(0, 1)
        x = layer(x, previous)
    return x

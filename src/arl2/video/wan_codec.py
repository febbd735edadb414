"""The Wan 2.1 VAE as a codec with streaming in both directions; the weights are diffusers', the passes our own."""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from arl2.errors import GeometryError
from arl2.geometry import latent_frames_of, video_frames_of
from arl2.video.codec import FRAMES_AT_ONCE, CodecCache, Latents, Side, Video, wan_factors
from arl2.video.streaming import LatentStatistics, require_channels
from arl2.video.wan_layout import require_wan21, vae_of_file, vae_of_folder
from arl2.video.wan_passes import decode_pass, encode_pass, merging_matrix
from arl2.video.wan_streaming import LAYOUT, convert_layout, forget_gradients, names_of, next_frames


class WanCodec(nn.Module):
    """The codec; implements ``arl2.video.codec.VideoCodec``.

    It works on up to three latent frames at once; the first of a stream, which stands for one video frame, has a pass
    of its own. The same split of a stream gives the same bits. Another split of the same frames differs by rounding,
    as libraries sum convolutions of other sizes in another order (4e-7 of the norm in float32, 5e-3 in bfloat16), and
    by no more. The numbers are those of ``AutoencoderKLWan`` up to rounding: of its ``decode`` of the raw latents
    (which clamps to [-1, 1]; this one does not) and of the mode of its ``encode``.

    Beyond what is returned, memory depends on batch and frame size alone. Gradients, where they are on, reach all
    frames of one call and none of an earlier one.

    Pixels and latents may come in any floating dtype. The network computes in the dtype of its weights, and so is what
    it returns; the latent statistics are applied in float32.

    Args:
        vae: the network, with its weights, whose memory is reordered (channels last). Its own passes, tiling and
            slicing are not used.

    Raises:
        ConfigError: a VAE that is not of the Wan 2.1 kind.
    """

    _merging: Tensor

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        require_wan21(dict(vae.config), where="The config of this VAE")
        self.vae = vae
        self._statistics = LatentStatistics(self.latent_channels, vae.config.latents_mean, vae.config.latents_std)
        self.register_buffer("_merging", merging_matrix(), persistent=False)
        _reorder_weights(vae)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        output_loading_info: bool = False,
        local_files_only: Literal[True] = True,
    ) -> Any:
        """Load a folder in the layout of a diffusers pipeline's ``vae``, exactly: every tensor there and no other.

        Args:
            folder: with ``config.json`` and one ``.safetensors`` file.
            torch_dtype: to compute in.
            output_loading_info: as in diffusers: also return a report of unfit tensors, which is empty.
            local_files_only: as in diffusers; nothing is ever fetched.

        Raises:
            CheckpointError: a file that is missing, damaged, of another class, or not exactly one VAE.
            ConfigError: sizes that no Wan 2.1 VAE has.
        """
        codec = cls(vae_of_folder(Path(folder), dtype=torch_dtype)).eval()
        report: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (codec, report) if output_loading_info else codec

    @classmethod
    def from_published(cls, path: str | Path, *, torch_dtype: torch.dtype = torch.float32) -> "WanCodec":
        """Load the single file of the first release, ``Wan2.1_VAE.pth``; it is read with code disabled.

        Args:
            path: ``.pth`` or ``.safetensors``, in the original key layout or in that of diffusers. The widths are read
                off the tensors; the latent statistics are the published ones, which no file holds.
            torch_dtype: to compute in.

        Raises:
            CheckpointError: a file that is missing, damaged, or not exactly one Wan 2.1 VAE.
        """
        return cls(vae_of_file(Path(path), dtype=torch_dtype)).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what ``from_pretrained`` reads; diffusers' own pipelines read it as well."""
        self.vae.save_pretrained(folder)

    @property
    def config(self) -> Any:
        """The VAE's own config: sizes and latent statistics."""
        return self.vae.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of all that is returned."""
        return self.vae.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae.device

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config.z_dim

    @property
    def spatial_factor(self) -> int:
        """Video pixels a latent pixel stands for, along each side."""
        return wan_factors(self.vae.config)[0]

    @property
    def temporal_factor(self) -> int:
        """Video frames a latent frame stands for, except the first of a stream, which stands for one."""
        return wan_factors(self.vae.config)[1]

    def new_cache(self, side: Side = "decoder") -> CodecCache:
        """An empty cache: the start of a stream."""
        return CodecCache(side, layout=LAYOUT)

    def frames_of(self, first_frame: int, latent_frames: int) -> int:
        """Video frames of ``latent_frames`` latent frames, the first of which has index ``first_frame``."""
        return video_frames_of(first_frame, latent_frames, self.temporal_factor)

    def encode(self, video: Video, cache: CodecCache | None = None) -> Latents:
        """Normalised latents: the mode of the posterior, less the mean, over the standard deviation of each channel.

        Args:
            video: values in [-1, 1]. The first call of a stream takes ``1 + temporal_factor * n`` video frames,
                later ones a multiple of ``temporal_factor``; sides are multiples of ``spatial_factor``.
            cache: from ``new_cache("encoder")``; updated. None: the video is a whole clip.

        Raises:
            GeometryError: sides or a number of video frames that do not fit.
            MemoryMismatchError: a cache of another stream, side or codec.
        """
        cache = self.new_cache("encoder") if cache is None else cache
        names = self._continue(cache, "encoder")
        self._require_whole_latent_pixels(video)
        count = latent_frames_of(cache.latent_frames, video.shape[2], self.temporal_factor)
        passes = _passes(cache.latent_frames, count)
        starts = [cache.latent_frames + sum(passes[:i]) for i in range(len(passes))]
        pieces = video.split([self.frames_of(*one) for one in zip(starts, passes, strict=True)], dim=2)
        latents = [self._encode(*piece, cache, names) for piece in zip(pieces, passes, strict=True)]
        forget_gradients(cache)
        return torch.cat(latents, dim=2)

    def decode(self, latents: Latents, cache: CodecCache | None = None) -> Video:
        """Video of normalised latents.

        Args:
            latents: as ``encode`` gives them, one latent frame or more.
            cache: from ``new_cache()``; updated. None: the latents are a whole clip.

        Returns:
            ``frames_of(index of the first latent frame, latent_frames)`` video frames, not clamped to [-1, 1].

        Raises:
            GeometryError: another number of channels, or no frames.
            MemoryMismatchError: a cache of another stream, side or codec.
        """
        cache = self.new_cache() if cache is None else cache
        names = self._continue(cache, "decoder")
        require_channels(latents, self.latent_channels)
        if not latents.numel():
            raise GeometryError(f"Got latents of {list(latents.shape)}; give one latent frame or more.")
        pieces = latents.split(_passes(cache.latent_frames, latents.shape[2]), dim=2)
        video = [self._decode(piece, cache, names) for piece in pieces]
        forget_gradients(cache)
        return torch.cat(video, dim=2)

    def _encode(self, video: Tensor, latent_frames: int, cache: CodecCache, names: dict[nn.Conv3d, str]) -> Tensor:
        pixels = _channels_last(video.to(self.dtype))
        with next_frames(cache, names, pixels, latent_frames=latent_frames) as past:
            moments = encode_pass(self.vae.encoder, pixels, past, latent_frames=latent_frames)
        # What follows the mode are log variances.
        weight, bias = (x[: self.latent_channels] for x in (self.vae.quant_conv.weight, self.vae.quant_conv.bias))
        mode = _channels_first(F.linear(moments, weight.flatten(1), bias))
        return self._statistics.normalise(_at_least_float32(mode)).to(self.dtype)

    def _decode(self, latents: Tensor, cache: CodecCache, names: dict[nn.Conv3d, str]) -> Tensor:
        raw = self._statistics.denormalise(_at_least_float32(latents)).to(self.dtype)
        mixing = self.vae.post_quant_conv
        raw = F.linear(_channels_last(raw), mixing.weight.flatten(1), mixing.bias)
        with next_frames(cache, names, raw, latent_frames=latents.shape[2]) as past:
            return _channels_first(decode_pass(self.vae.decoder, raw, past, self._merging))

    def _continue(self, cache: CodecCache, side: Side) -> dict[nn.Conv3d, str]:
        """The names of what a cache holds, which has passed all checks that need no frames."""
        cache.require(side, layout=LAYOUT)
        names = names_of(self.vae.encoder if side == "encoder" else self.vae.decoder)
        convert_layout(cache, names, summed=self.vae.decoder.conv_out)
        return names

    def _require_whole_latent_pixels(self, video: Tensor) -> None:
        height, width = video.shape[-2:]
        factor = self.spatial_factor
        if not height or not width or height % factor or width % factor:
            raise GeometryError(
                f"Got video of {width} x {height}, but both sides must be multiples of {factor}; crop or resize it."
            )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _passes(before: int, latent_frames: int) -> list[int]:
    """Latent frames of each pass: the first of a stream is alone."""
    first = [1] if not before and latent_frames else []
    left = latent_frames - len(first)
    return [*first, *(min(FRAMES_AT_ONCE, left - i) for i in range(0, left, FRAMES_AT_ONCE))]


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3).contiguous()


def _reorder_weights(vae: nn.Module) -> None:
    """Once, so that no pass does: the memory of convolutions channels last, their shapes as they were.

    What is saved stays in the usual order, which files ask for.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in vae.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    vae.register_state_dict_post_hook(_in_usual_order)


@torch.no_grad()
def _in_usual_order(module: nn.Module, tensors: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            tensors[name] = tensor.contiguous()

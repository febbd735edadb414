"""What the small codecs share: checks of their input, whole groups of video frames, latent statistics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from arl2.errors import ConfigError, GeometryError, MemoryMismatchError
from arl2.geometry import latent_frames_of
from arl2.video.codec import Latents, Video


def whole_groups(video: Video, *, from_start: bool, spatial_factor: int, temporal_factor: int) -> Tensor:
    """The video with, at the start of a stream, its first frame repeated until it fills a latent frame.

    Raises:
        GeometryError: for sides that are no multiple of ``spatial_factor``, or a clip that ends inside a latent frame.
    """
    height, width = video.shape[-2:]
    if height % spatial_factor or width % spatial_factor:
        raise GeometryError(
            f"Got video of {width} x {height}, but both sides must be multiples of {spatial_factor}; crop or resize it."
        )
    latent_frames_of(0 if from_start else 1, video.shape[2], temporal_factor)
    if not from_start:
        return video
    return torch.cat((video[:, :, :1].expand(-1, -1, temporal_factor - 1, -1, -1), video), dim=2)


def require_channels(latents: Latents, channels: int) -> None:
    """Raise ``GeometryError`` unless the latents have that many channels."""
    if latents.shape[1] != channels:
        raise GeometryError(
            f"Got latents with {latents.shape[1]} channels, but this codec has {channels}; use the codec of them."
        )


def require_same_picture(held: Tensor, got: Tensor) -> None:
    """Raise ``MemoryMismatchError`` unless what a cache holds has the batch and frame size of what was got."""
    if held.shape != got.shape:
        raise MemoryMismatchError(
            f"This cache holds frames of {list(held.shape)}; got {list(got.shape)}. Batch and frame size stay the same "
            "within a stream, a new stream needs a new cache."
        )


class LatentStatistics:
    """Mean and standard deviation of each channel of raw latents; without any, 0 and 1."""

    def __init__(self, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        for name, values in (("latents_mean", mean), ("latents_std", std)):
            if values is not None and len(values) != channels:
                raise ConfigError(f"{name} has {len(values)} values for {channels} latent channels; give one each.")
        self._mean = list(mean) if mean is not None else [0.0] * channels
        self._std = list(std) if std is not None else [1.0] * channels
        # By device and dtype: made once, as copying from the host would hold up a GPU in every block.
        self._made: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def normalise(self, raw: Latents) -> Latents:
        """Raw latents to those that a codec returns."""
        mean, std = self._tensors(raw)
        return (raw - mean) / std

    def denormalise(self, latents: Latents) -> Latents:
        """The inverse of ``normalise``."""
        mean, std = self._tensors(latents)
        return latents * std + mean

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self._made:
            with torch.inference_mode(False):
                mean, std = (like.new_tensor(values).view(1, -1, 1, 1, 1) for values in (self._mean, self._std))
            self._made[key] = mean, std
        return self._made[key]

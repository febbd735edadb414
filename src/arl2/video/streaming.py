"""What the small codecs share: checks of what comes in, whole groups of video frames, latent statistics."""

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
            f"Video of {width} x {height} came, but both sides must be multiples of {spatial_factor}; crop or "
            "resize it."
        )
    latent_frames_of(0 if from_start else 1, video.shape[2], temporal_factor)
    if not from_start:
        return video
    return torch.cat((video[:, :, :1].expand(-1, -1, temporal_factor - 1, -1, -1), video), dim=2)


def require_channels(latents: Latents, channels: int) -> None:
    """Raise ``GeometryError`` unless the latents have that many channels."""
    if latents.shape[1] != channels:
        raise GeometryError(
            f"Latents with {latents.shape[1]} channels came, but this codec has {channels}; use the codec that made "
            "them."
        )


def require_same_picture(held: Tensor, came: Tensor) -> None:
    """Raise ``MemoryMismatchError`` unless what a cache holds has batch and picture size of what came."""
    if held.shape != came.shape:
        raise MemoryMismatchError(
            f"This cache holds pictures of {list(held.shape)}, but {list(came.shape)} came; batch and picture size "
            "stay the same within a stream, a new stream needs a new cache."
        )


class LatentStatistics:
    """Mean and standard deviation of each channel of raw latents; without any, 0 and 1."""

    def __init__(self, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        for name, values in (("latents_mean", mean), ("latents_std", std)):
            if values is not None and len(values) != channels:
                raise ConfigError(f"{name} has {len(values)} values for {channels} latent channels; give one each.")
        self._mean = list(mean) if mean is not None else [0.0] * channels
        self._std = list(std) if std is not None else [1.0] * channels

    def normalise(self, raw: Latents) -> Latents:
        """Raw latents to what leaves a codec."""
        mean, std = self._tensors(raw)
        return (raw - mean) / std

    def denormalise(self, latents: Latents) -> Latents:
        """What comes into a codec to raw latents."""
        mean, std = self._tensors(latents)
        return latents * std + mean

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(like.new_tensor(values).view(1, -1, 1, 1, 1) for values in (self._mean, self._std))  # type: ignore[return-value]

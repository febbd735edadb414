"""What every video codec of arl2 offers: pixels to latents and back, whole clips or block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import MemoryMismatchError

Side = Literal["encoder", "decoder"]

# Of Wan's VAE and of every codec that takes its place: pixels a latent pixel along each side, video frames a latent
# frame. For what is counted before a codec is loaded; a codec at hand says its own.
SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4
# Latent frames that Wan's VAE takes in one pass: a block; more would only take more memory.
FRAMES_AT_ONCE = 3

Video = Float[Tensor, "batch 3 frames height width"]
Latents = Float[Tensor, "batch channels latent_frames latent_height latent_width"]


@dataclass
class CodecCache:
    """What one direction of a codec remembers of a stream; made by ``VideoCodec.new_cache``, kept by the caller.

    Its size does not depend on how much of the stream has passed. ``clone`` forks a stream; ``to_tensors`` and
    ``from_tensors`` save one.

    Attributes:
        side: the direction.
        latent_frames: that have passed.
        features: by name, in the codec's own layout.
        layout: version of that layout.
    """

    side: Side
    latent_frames: int = 0
    features: dict[str, Tensor] = field(default_factory=dict)
    layout: int = 1

    def clone(self) -> "CodecCache":
        """An independent copy: continuing one does not change the other."""
        return replace(self, features={name: x.clone() for name, x in self.features.items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, ready for safetensors."""
        counters = {"latent_frames": torch.tensor(self.latent_frames)}
        if self.layout > 1:  # files from before there were layouts are of layout 1
            counters["layout"] = torch.tensor(self.layout)
        return counters | self.features

    @classmethod
    def from_tensors(cls, side: Side, tensors: dict[str, Tensor]) -> "CodecCache":
        """The inverse of ``to_tensors``; raises ``MemoryMismatchError`` if the counter is missing."""
        if "latent_frames" not in tensors:
            raise MemoryMismatchError(
                f"A saved codec cache needs the tensor 'latent_frames'; got only {sorted(tensors)}; "
                "pass what CodecCache.to_tensors returned."
            )
        features = {name: x for name, x in tensors.items() if name not in ("latent_frames", "layout")}
        layout = int(tensors["layout"]) if "layout" in tensors else 1
        return cls(side, int(tensors["latent_frames"]), features, layout)

    def require(self, side: Side, *, layout: int = 1) -> None:
        """Raise ``MemoryMismatchError`` for a cache of the other direction, or of a later layout than ``layout``."""
        if self.side != side:
            raise MemoryMismatchError(
                f"This cache belongs to the {self.side}, but the {side} was called; make one with new_cache('{side}')."
            )
        if not 1 <= self.layout <= layout:
            raise MemoryMismatchError(
                f"This cache has layout {self.layout}, but this codec reads layouts up to {layout}; continue the "
                "stream with the codec, or the version of arl2, that it was saved with."
            )


@runtime_checkable
class VideoCodec(Protocol):
    """Pixels in [-1, 1] to normalised latents (about zero mean, unit variance a channel) and back.

    The first latent frame of a stream stands for one video frame, every later one for ``temporal_factor``.
    Without a cache a call is a whole clip; with one it continues where the last call with that cache ended.
    """

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def spatial_factor(self) -> int:
        """Video pixels a latent pixel stands for, along each side."""
        ...

    @property
    def temporal_factor(self) -> int:
        """Video frames a latent frame stands for, except the first of a stream, which stands for one."""
        ...

    def new_cache(self, side: Side = "decoder") -> CodecCache:
        """An empty cache: the start of a stream."""
        ...

    def encode(self, video: Video, cache: CodecCache | None = None) -> Latents:
        """Latents of the video frames given; as many video frames as make whole latent frames."""
        ...

    def decode(self, latents: Latents, cache: CodecCache | None = None) -> Video:
        """Video frames of the latents given, not clamped."""
        ...

    def frames_of(self, first_frame: int, latent_frames: int) -> int:
        """Video frames that ``latent_frames`` latent frames give when the first has index ``first_frame``."""
        ...


def wan_factors(config: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Spatial and temporal factor of a Wan VAE before it is loaded, from its config; None: the published one.

    >>> wan_factors()
    (8, 4)
    """
    sizes = {"dim_mult": (1, 2, 4, 4), "temperal_downsample": (False, True, True), **(config or {})}
    return 2 ** (len(sizes["dim_mult"]) - 1), 2 ** sum(sizes["temperal_downsample"])

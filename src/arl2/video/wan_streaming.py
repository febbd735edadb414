"""What the causal convolutions of the Wan VAE remember between passes, kept in a ``CodecCache``.

A convolution that sees three frames needs the last two that it read, after norm and activation. They are kept channels
last, ``[batch, 2, height, width, channels]`` (one frame where the convolution halves time). The decoder's last
convolution, from many channels to three, keeps what those frames add to the next two instead, in float32 or better.

This is layout 2. Layout 1 (diffusers' order, channels first, one frame after the first latent frame, the last
convolution like the others) is converted when a stream continues.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.errors import MemoryMismatchError
from arl2.video.codec import CodecCache
from arl2.video.streaming import require_same_picture

LAYOUT = 2

Frames = Float[Tensor, "batch frames height width channels"]


class Past:
    """What one stream remembers, by convolution; None before its first pass."""

    def __init__(self, features: dict[str, Tensor], names: dict[nn.Conv3d, str]) -> None:
        self.features, self._names = features, names

    def __getitem__(self, conv: nn.Conv3d) -> Tensor | None:
        return self.features.get(self._names[conv])

    def __setitem__(self, conv: nn.Conv3d, kept: Tensor) -> None:
        self.features[self._names[conv]] = kept


def lookback(conv: nn.Conv3d) -> int:
    """Frames that a causal convolution sees of those that were there before."""
    return conv.kernel_size[0] - conv.stride[0]


def names_of(network: nn.Module) -> dict[nn.Conv3d, str]:
    """The convolutions of an encoder or decoder that look back in time, in their order, and the names of their past."""
    causal = [one for one in network.modules() if isinstance(one, nn.Conv3d) and one.kernel_size[0] > 1]
    return {conv: f"slot.{i:02d}" for i, conv in enumerate(causal)}


@contextmanager
def next_frames(
    cache: CodecCache, names: dict[nn.Conv3d, str], network_input: Frames, *, latent_frames: int
) -> Iterator[Past]:
    """The past for some latent frames, which count as passed when the ``with`` block is left without an error.

    After an error the cache is empty: what the layers remember may be of two different times, and is not used again.
    That way a stream holds its memory once, not an old and a new one.

    Args:
        cache: of the right side; updated.
        names: from ``names_of`` the network.
        network_input: what its first convolution gets.
        latent_frames: in this pass.

    Raises:
        MemoryMismatchError: the cache is of another codec, dtype, batch or frame size, or was lost in an error.
    """
    _require_whole(cache, names)
    if cache.latent_frames:
        first = cache.features[next(iter(names.values()))]
        require_same_picture(first[:, -1], network_input[:, -1])
        if first.dtype != network_input.dtype:
            raise MemoryMismatchError(
                f"This cache holds {first.dtype}, but the codec computes in {network_input.dtype}; continue in the "
                "dtype that the stream began in."
            )
    # A stream that was saved comes back on the CPU.
    past = Past({name: x.to(network_input.device) for name, x in cache.features.items()}, names)
    cache.features = {}
    yield past
    cache.features = past.features
    cache.latent_frames += latent_frames


def forget_gradients(cache: CodecCache) -> None:
    """Cut the graph: gradients reach all frames of one call; what a stream remembers from call to call is numbers."""
    cache.features = {name: x.detach() for name, x in cache.features.items()}


@torch.no_grad()
def convert_layout(cache: CodecCache, names: dict[nn.Conv3d, str], *, summed: nn.Conv3d | None) -> None:
    """Bring a cache of layout 1 to this one, in place.

    Args:
        cache: of the right side.
        names: from ``names_of`` the network.
        summed: the convolution that remembers sums, if there is one.

    Raises:
        MemoryMismatchError: a cache of another codec.
    """
    if cache.layout == LAYOUT:
        return
    _require_whole(cache, names)
    features: dict[str, Tensor] = {}
    before = torch.empty(0)
    for conv, name in names.items() if cache.latent_frames else ():
        held = cache.features[name]
        # An empty mark: the layer that doubles time let the first frame through and remembers nothing of it.
        held = torch.zeros_like(before) if held.dim() == 1 else held.permute(0, 2, 3, 4, 1)
        missing = lookback(conv) - held.shape[1]
        before = held = F.pad(held, (0, 0, 0, 0, 0, 0, missing, 0)).contiguous()
        features[name] = _added_later(conv, held) if conv is summed else held
    cache.features, cache.layout = features, LAYOUT


def _added_later(conv: nn.Conv3d, held: Frames) -> Tensor:
    """What the last frames add to the next ones."""
    then = F.pad(held, (0, 0, 0, 0, 0, 0, 0, held.shape[1])).permute(0, 4, 1, 2, 3).to(conv.weight)
    sums = F.conv3d(then, conv.weight, padding=(0, *(size // 2 for size in conv.kernel_size[1:])))
    return sums.permute(0, 2, 3, 4, 1).to(torch.promote_types(held.dtype, torch.float32)).contiguous()


def _require_whole(cache: CodecCache, names: dict[nn.Conv3d, str]) -> None:
    expected = set(names.values()) if cache.latent_frames else set()
    if set(cache.features) != expected:
        raise MemoryMismatchError(
            f"After {cache.latent_frames} latent frames this codec's cache holds {len(expected)} features; got "
            f"{len(cache.features)}, or others. It is of another codec, or its last call ended in an error: begin a "
            "new stream, or continue from a clone."
        )

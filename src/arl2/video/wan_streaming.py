"""What the causal convolutions of the Wan VAE remember between latent frames, kept in a ``CodecCache``.

The network, taken from diffusers, reads and replaces its memory through a list with one slot for each convolution that
looks back in time. Here that list is a view of the cache's named tensors: nothing is copied, and each slot holds the
last one or two frames that its convolution saw.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.errors import MemoryMismatchError
from arl2.video.codec import CodecCache
from arl2.video.streaming import require_same_picture

# Diffusers' mark in the slot of a layer that doubles time: it let the stream's first latent frame through undoubled
# and remembers nothing of it.
_FIRST_FRAME_PASSED = "Rep"

Frames = Float[Tensor, "batch channels frames height width"]


class FeatureSlots:
    """Named tensors behind the list interface of diffusers' ``feat_cache``.

    A slot never written is no tensor at all; the mark of a passed first frame is a tensor without numbers, so that a
    cache can be saved like any other.
    """

    def __init__(self, features: dict[str, Tensor]) -> None:
        self.features = features

    def __getitem__(self, slot: int) -> Tensor | str | None:
        held = self.features.get(_name(slot))
        return _FIRST_FRAME_PASSED if held is not None and held.dim() == 1 else held

    def __setitem__(self, slot: int, value: Tensor | str) -> None:
        if isinstance(value, Tensor):
            # Files hold contiguous tensors: a stream that was saved must compute as one that was not.
            self.features[_name(slot)] = value.contiguous()
        else:
            assert value == _FIRST_FRAME_PASSED
            self.features[_name(slot)] = torch.empty(0)


def slot_count(network: nn.Module) -> int:
    """Convolutions of an encoder or decoder that look back in time: the slots which its stream fills."""
    return sum(isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1 for module in network.modules())


@contextmanager
def next_latent_frame(cache: CodecCache, slots: int, network_input: Frames) -> Iterator[FeatureSlots]:
    """The memory for one latent frame, which counts as passed when the ``with`` block is left without an error.

    After an error the cache is empty: what the layers remember may be of two different times, and is not used again.
    That way a stream holds its memory once, not an old and a new one.

    Args:
        cache: of the right side; updated.
        slots: ``slot_count`` of the network.
        network_input: what its first convolution gets.

    Raises:
        MemoryMismatchError: the cache is of another codec, dtype, batch or frame size, or was lost in an error.
    """
    _require_whole(cache, slots)
    if cache.latent_frames:
        first = cache.features[_name(0)]
        require_same_picture(first[:, :, -1], network_input[:, :, -1])
        if first.dtype != network_input.dtype:
            raise MemoryMismatchError(
                f"This cache holds {first.dtype}, but the codec computes in {network_input.dtype}; continue in the "
                "dtype that the stream began in."
            )
    # A stream that was saved comes back on the CPU.
    view = FeatureSlots({name: x.to(network_input.device) for name, x in cache.features.items()})
    cache.features = {}
    yield view
    cache.features = view.features
    cache.latent_frames += 1


def forget_gradients(cache: CodecCache) -> None:
    """Cut the graph: gradients reach all frames of one call; what a stream remembers from call to call is numbers."""
    cache.features = {name: x.detach() for name, x in cache.features.items()}


def _require_whole(cache: CodecCache, slots: int) -> None:
    expected = {_name(slot) for slot in range(slots)} if cache.latent_frames else set()
    if set(cache.features) != expected:
        raise MemoryMismatchError(
            f"After {cache.latent_frames} latent frames this codec's cache holds {len(expected)} features; got "
            f"{len(cache.features)}, or others. It is of another codec, or its last call ended in an error: begin a "
            "new stream, or continue from a clone."
        )


def _name(slot: int) -> str:
    return f"slot.{slot:02d}"

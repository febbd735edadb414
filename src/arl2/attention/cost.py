"""Sizes that the cost of attention is counted from, and the operations and bytes that are counted."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from arl2.attention.layer_memory import MemoryGeometry
from arl2.kernels.delta_rule.chunked import CHUNK


class HeadSize(NamedTuple):
    """Heads of a layer and the size of one."""

    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Of the model."""
        return self.heads * self.head_dim

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "HeadSize":
        """Of a transformer's configuration."""
        return cls(config["num_attention_heads"], config["attention_head_dim"])


@dataclass(frozen=True)
class PassFlops:
    """Floating-point operations by what does them; a multiply-add is two."""

    linear: int = 0
    self_attention: int = 0
    cross_attention: int = 0
    state_read: int = 0
    state_update: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self._parts())

    def __add__(self, other: "PassFlops") -> "PassFlops":
        return PassFlops(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def times(self, count: int) -> "PassFlops":
        """Of ``count`` passes."""
        return PassFlops(*(count * part for part in self._parts()))

    def _parts(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes that a stream's memory takes.

    Attributes:
        states: constant from the first block on.
        cache_per_frame: for each latent frame kept.
        moved_sink: more for each sink that moves with the window (``sink_positions="relative"``).
        growth_per_frame: of the largest single tensor that is copied when it grows, for each frame it has room for.
    """

    states: int = 0
    cache_per_frame: int = 0
    moved_sink: int = 0
    growth_per_frame: int = 0

    def at(self, frames: int, *, moved_sinks: int = 0) -> int:
        """With ``frames`` latent frames kept and ``moved_sinks`` sinks that move."""
        return self.states + frames * self.cache_per_frame + moved_sinks * self.moved_sink

    def __add__(self, other: "MemoryBytes") -> "MemoryBytes":
        return MemoryBytes(
            self.states + other.states,
            self.cache_per_frame + other.cache_per_frame,
            self.moved_sink + other.moved_sink,
            max(self.growth_per_frame, other.growth_per_frame),  # tensors grow one at a time
        )


class BlockSeen(NamedTuple):
    """A block of a clip, and how many latent frames before it a window shows."""

    block: MemoryGeometry
    past_frames: int


def saved_bytes(multiples: tuple[float, float, float], size: HeadSize, ffn_dim: int) -> float:
    """Bytes a token from multiples of the width, of the feed-forward's hidden size and of heads x chunk.

    Kinds count theirs with ``torch.autograd.graph.saved_tensors_hooks`` over layers of many sizes and clips of seven
    blocks; a test counts again.
    """
    of_width, of_hidden, of_chunk = multiples
    return of_width * size.width + of_hidden * ffn_dim + of_chunk * size.heads * CHUNK

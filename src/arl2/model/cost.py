"""What a pass costs and what memory takes, counted from the configuration: operations and bytes, no measuring.

A multiply-add is two operations. Elementwise work, norms and the time path are left out: they cost bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from arl2.attention.memory import MemoryGeometry
from arl2.attention.plan import HybridSpec
from arl2.geometry import split_blocks
from arl2.kernels.delta_rule.chunked import CHUNK

STATE_BYTES = 4  # states are float32


@dataclass(frozen=True)
class PassFlops:
    """Floating-point operations of one pass over one block, by what does them."""

    linear: int
    self_attention: int
    cross_attention: int
    state_read: int
    state_update: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.self_attention + self.cross_attention + self.state_read + self.state_update

    def __add__(self, other: "PassFlops") -> "PassFlops":
        return PassFlops(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def times(self, count: int) -> "PassFlops":
        """Of so many passes."""
        return PassFlops(*(count * part for part in self._parts()))

    def _parts(self) -> tuple[int, ...]:
        return (self.linear, self.self_attention, self.cross_attention, self.state_read, self.state_update)


def pass_flops(config: Mapping[str, Any], geometry: MemoryGeometry, *, past_frames: int, commit: bool) -> PassFlops:
    """Operations of one pass of a stream.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of the block.
        past_frames: frames that softmax layers see before the block.
        commit: a clean pass (writes memory; the last layer stops there) or a denoising pass.
    """
    plan: str = config["layer_plan"]
    last = len(plan) - 1
    tokens = geometry.batch * geometry.block_frames * geometry.frame_tokens
    ends = _end(config, tokens, config["in_channels"])
    if not commit:
        ends += _end(config, tokens, config["out_channels"])
    total = PassFlops(ends, 0, 0, 0, 0)
    for i, letter in enumerate(plan):
        memory_only = commit and i == last
        if letter == HybridSpec.letter:
            total += _hybrid(config, geometry, tokens, commit, memory_only)
        else:
            total += _softmax(config, geometry, tokens, past_frames, memory_only)
        if not memory_only:
            total += _cross_and_ffn(config, tokens, letter)
    return total


def clip_flops(
    config: Mapping[str, Any],
    geometry: MemoryGeometry,
    *,
    frames: int,
    first_block_frames: int | None = None,
    hybrid_attention_alone: bool = False,
) -> PassFlops:
    """Operations of one parallel forward of a whole clip under teacher forcing, both halves.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of a block.
        frames: latent frames of the clip.
        first_block_frames: where the first block differs.
        hybrid_attention_alone: count the self-attention of hybrid layers and nothing else: what stage 1 adds to the
            teacher's pass.

    Raises:
        GeometryError: frames that are not whole blocks.
    """
    plan, window = str(config["layer_plan"]), config["window"]
    hybrid = plan.count(HybridSpec.letter)
    total = PassFlops(0, 0, 0, 0, 0)
    spans = split_blocks(frames, geometry.block_frames, first_block_frames)
    for span in spans:
        block = replace(geometry, block_frames=len(span))
        tokens = block.batch * block.block_frames * block.frame_tokens
        past = span.start if window is None else min(span.start, window - len(span))
        # Both halves; the head reads the noisy one alone.
        if hybrid_attention_alone:
            total += _hybrid(config, block, tokens, commit=False, memory_only=False).times(2 * hybrid)
        else:
            total += pass_flops(config, block, past_frames=past, commit=False).times(2)
            total += PassFlops(-_end(config, tokens, config["out_channels"]), 0, 0, 0, 0)
        if span is not spans[-1]:  # the clean half writes the state that the next block reads
            linear, update = _state_write(config, tokens)
            total += PassFlops(hybrid * linear, 0, 0, 0, hybrid * update)
    return total


def rollout_flops(
    config: Mapping[str, Any],
    geometry: MemoryGeometry,
    *,
    frames: int,
    passes: int,
    first_block_passes: int | None = None,
    first_block_frames: int | None = None,
    known_blocks: int = 0,
) -> PassFlops:
    """Operations of generating a clip block by block.

    Args:
        config: the transformer's.
        geometry: batch, token grid and frames of a block.
        frames: latent frames of the clip.
        passes: denoising passes of a block; a clean pass follows.
        first_block_passes: of the first block, where they differ.
        first_block_frames: where the first block differs.
        known_blocks: first blocks that are given, and cost a clean pass alone.

    Raises:
        GeometryError: frames that are not whole blocks.
    """
    window, total = config["window"], PassFlops(0, 0, 0, 0, 0)
    for number, span in enumerate(split_blocks(frames, geometry.block_frames, first_block_frames)):
        block = replace(geometry, block_frames=len(span))
        past = span.start if window is None else min(span.start, window - len(span))
        count = passes if number or first_block_passes is None else first_block_passes
        if number >= known_blocks:
            total += pass_flops(config, block, past_frames=past, commit=False).times(count)
        total += pass_flops(config, block, past_frames=past, commit=True)
    return total


def _end(config: Mapping[str, Any], tokens: int, channels: int) -> int:
    """Of embedding patches, or of the head."""
    patch_values = config["patch_size"][1] * config["patch_size"][2] * channels
    return 2 * tokens * config["num_attention_heads"] * config["attention_head_dim"] * patch_values


def _softmax(
    config: Mapping[str, Any], geometry: MemoryGeometry, tokens: int, past_frames: int, memory_only: bool
) -> PassFlops:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if memory_only:
        return PassFlops(4 * tokens * width**2, 0, 0, 0, 0)
    seen = (past_frames + geometry.block_frames) * geometry.frame_tokens
    return PassFlops(8 * tokens * width**2, 4 * tokens * seen * width, 0, 0, 0)


def _hybrid(
    config: Mapping[str, Any], geometry: MemoryGeometry, tokens: int, commit: bool, memory_only: bool
) -> PassFlops:
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * head_dim
    branch = (
        2 * tokens * width * head_dim + 4 * tokens * width * config["state_rank"]
    )  # phi and low-rank, each of q k v
    gate = 2 * tokens * width * heads
    linear = self_attention = read = update = 0
    if commit:
        linear, update = _state_write(config, tokens)
    if memory_only:
        linear += 4 * tokens * width**2
    else:
        linear += 8 * tokens * width**2 + branch + gate
        self_attention = 4 * tokens * geometry.block_frames * geometry.frame_tokens * width
        read = 2 * tokens * width * head_dim
    return PassFlops(linear, self_attention, 0, read, update)


def _state_write(config: Mapping[str, Any], tokens: int) -> tuple[int, int]:
    """Linear operations of k', v', decay and strength, and those of the update."""
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * head_dim
    linear = 4 * tokens * width * head_dim + 8 * tokens * width * config["state_rank"] + 4 * tokens * width * heads
    return linear, tokens * heads * (4 * head_dim**2 + 3 * CHUNK * head_dim)


def _cross_and_ffn(config: Mapping[str, Any], tokens: int, letter: str) -> PassFlops:
    width, hidden = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    has_change = config["ffn_rank_layers"] == "all" or letter == HybridSpec.letter
    rank = config["ffn_rank"] if has_change else 0
    linear = 4 * tokens * width**2 + 4 * tokens * width * hidden + 4 * tokens * rank * (width + hidden)
    return PassFlops(linear, 0, 4 * tokens * config["text_len"] * width, 0, 0)


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes that a stream's memory takes.

    Attributes:
        states: of all hybrid layers, for ever.
        cache_per_frame: of all softmax layers, for each latent frame kept.
    """

    states: int
    cache_per_frame: int

    def at(self, frames: int, *, moved_sinks: int = 0) -> int:
        """With ``frames`` latent frames kept in the softmax layers.

        Args:
            moved_sinks: sinks that move with the window (``sink_positions="relative"``): their keys are kept twice, as
                they were written and as they stand now.
        """
        return self.states + frames * self.cache_per_frame + moved_sinks * self.cache_per_frame // 2


def memory_bytes(config: Mapping[str, Any], *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
    """Bytes of memory for ``batch`` streams.

    Args:
        config: the transformer's.
        frame_tokens: tokens a latent frame.
        element_size: bytes of a cached key or value (2 in half precision).
    """
    plan: str = config["layer_plan"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    hybrid = plan.count(HybridSpec.letter)
    return MemoryBytes(
        states=hybrid * batch * heads * head_dim**2 * STATE_BYTES,
        cache_per_frame=(len(plan) - hybrid) * 2 * batch * frame_tokens * heads * head_dim * element_size,
    )

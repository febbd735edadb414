"""What layers keep of past blocks: a key-value cache or one recurrent state, and one ``Memory`` for all layers.

Memory is allocated once, owned by the caller, and counted in Python integers, so a rollout never waits for the device.
What is written is detached: gradients do not flow from one block's memory into another pass.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import MemoryMismatchError


@dataclass(frozen=True)
class MemoryGeometry:
    """Sizes that a memory is allocated for.

    Attributes:
        batch: samples.
        rows, columns: token grid of a frame.
        block_frames: frames of a block (the first block of a stream may be shorter).
    """

    batch: int
    rows: int
    columns: int
    block_frames: int

    @property
    def frame_tokens(self) -> int:
        """Tokens a frame."""
        return self.rows * self.columns


class LayerMemory(ABC):
    """Memory of one layer."""

    frames: int
    """Frames written since the stream began."""

    @abstractmethod
    def valid(self) -> tuple[Tensor, ...]:
        """The tensors that hold the past, without spare room."""

    @abstractmethod
    def clone(self) -> "LayerMemory":
        """An independent copy."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated, spare room included."""


class RecurrentState(LayerMemory):
    """One ``D x D`` matrix per head, float32: the same bytes from the first block to the millionth."""

    def __init__(self, geometry: MemoryGeometry, heads: int, head_dim: int, device: torch.device | str) -> None:
        self.frame_tokens = geometry.frame_tokens
        self.state: Float[Tensor, "batch heads key value"] = torch.zeros(
            geometry.batch, heads, head_dim, head_dim, dtype=torch.float32, device=device
        )
        self.frames = 0

    def read(self) -> Float[Tensor, "batch heads key value"]:
        """The state. A copy while gradients are recorded: a later write in place would spoil what they need."""
        return self.state.clone() if torch.is_grad_enabled() else self.state

    def write(self, state: Float[Tensor, "batch heads key value"], frames: int) -> None:
        """Replace the state by the one after a block of ``frames`` frames. In place: its address never changes."""
        self.state.copy_(state.detach())
        self.frames += frames

    def valid(self) -> tuple[Tensor, ...]:
        return (self.state,)

    def clone(self) -> "RecurrentState":
        twin = copy.copy(self)
        twin.state = self.state.clone()
        return twin

    @property
    def nbytes(self) -> int:
        return self.state.nbytes


class KeyValueCache(LayerMemory):
    """Keys and values of past frames: all of them, or the first ``sink`` frames and a ring of the latest.

    Slots are frames: ``[sinks | ring | room for the current block]``. Frame ``f`` lies in slot ``f`` until the ring is
    full; from then on it replaces the oldest frame of the ring. Attention does not care about the order of keys, so
    past and current block are always one slice, ``[0, past + current)``, and nothing is copied to be read.
    """

    def __init__(
        self,
        geometry: MemoryGeometry,
        heads: int,
        head_dim: int,
        *,
        window: int | None,
        sink: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if window is not None and window < sink + geometry.block_frames:
            raise MemoryMismatchError(
                f"A window of {window} frames cannot hold {sink} sink frames and a block of {geometry.block_frames}; "
                f"use at least {sink + geometry.block_frames}."
            )
        self.geometry, self.window, self.sink = geometry, window, sink
        self.frames = 0
        block = geometry.block_frames
        # Without a window the cache grows by doubling; with one this is all it will ever take.
        slots = 4 * block if window is None else window
        shape = (geometry.batch, slots * geometry.frame_tokens, heads, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def past(self) -> int:
        """Frames held now."""
        return self.frames if self.window is None else min(self.frames, self.window - self.geometry.block_frames)

    def with_block(
        self, k: Float[Tensor, "batch tokens heads head"], v: Float[Tensor, "batch tokens heads head"]
    ) -> tuple[Float[Tensor, "batch seen heads head"], Float[Tensor, "batch seen heads head"]]:
        """Keys and values of the past and of the current block; the past stays as it is."""
        start = self.past * self.geometry.frame_tokens
        if torch.is_grad_enabled():
            # The spare room is overwritten by the next pass, which autograd could not bear: concatenate instead.
            return torch.cat([self._keys[:, :start], k], dim=1), torch.cat([self._values[:, :start], v], dim=1)
        stop = start + k.shape[1]
        self._reserve(stop)
        self._keys[:, start:stop] = k.detach()
        self._values[:, start:stop] = v.detach()
        return self._keys[:, :stop], self._values[:, :stop]

    def write(
        self,
        k: Float[Tensor, "batch tokens heads head"],
        v: Float[Tensor, "batch tokens heads head"],
        frames: int,
    ) -> None:
        """Keep the keys and values of a block of ``frames`` frames, evicting the oldest past the sinks."""
        tokens = self.geometry.frame_tokens
        if self.window is None:
            self._reserve((self.frames + frames) * tokens)
        for i in range(frames):
            slot = self._slot(self.frames + i, last=self.frames + frames - 1)
            if slot is not None:
                kept, given = slice(slot * tokens, (slot + 1) * tokens), slice(i * tokens, (i + 1) * tokens)
                self._keys[:, kept] = k[:, given].detach()
                self._values[:, kept] = v[:, given].detach()
        self.frames += frames

    def _slot(self, frame: int, last: int) -> int | None:
        """Where a frame is kept; None if ``last``, a later frame of its block, has already pushed it out."""
        if self.window is None or frame < self.sink:
            return frame
        ring = self.window - self.geometry.block_frames - self.sink
        return None if frame + ring <= last else self.sink + (frame - self.sink) % ring

    def _reserve(self, tokens: int) -> None:
        if tokens <= self._keys.shape[1]:
            return
        used = self.past * self.geometry.frame_tokens
        room = max(tokens, 2 * self._keys.shape[1])
        self._keys, self._values = _enlarged(self._keys, used, room), _enlarged(self._values, used, room)

    def valid(self) -> tuple[Tensor, ...]:
        stop = self.past * self.geometry.frame_tokens
        return self._keys[:, :stop], self._values[:, :stop]

    def clone(self) -> "KeyValueCache":
        twin = copy.copy(self)
        twin._keys, twin._values = self._keys.clone(), self._values.clone()
        return twin

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes


def _enlarged(old: Tensor, used: int, room: int) -> Tensor:
    """A longer buffer that begins with the ``used`` tokens of ``old``."""
    grown = old.new_zeros(old.shape[0], room, *old.shape[2:])
    grown[:, :used] = old[:, :used]
    return grown


@dataclass
class Memory:
    """Memory of all layers of one model for one batch of streams.

    Attributes:
        owner: what the model calls itself (plan and sizes); another model's memory is refused.
        geometry: batch, token grid and block it was allocated for.
        layers: one entry a layer.
        frames: frames committed since the stream began, the position of the next block.
    """

    owner: str
    geometry: MemoryGeometry
    layers: tuple[LayerMemory, ...]
    frames: int = 0

    def check(self, owner: str, batch: int, rows: int, columns: int, frames: int) -> None:
        """Refuse a pass of ``frames`` frames that this memory was not allocated for.

        Raises:
            MemoryMismatchError: another model, batch, picture size or block, or a pass that broke off half-way.
        """
        if owner != self.owner:
            raise MemoryMismatchError(
                f"This memory belongs to a model of {self.owner}, not of {owner}; "
                "allocate one with this model's allocate_memory()."
            )
        ours, theirs = self.geometry, (batch, rows, columns)
        if (ours.batch, ours.rows, ours.columns) != theirs:
            raise MemoryMismatchError(
                f"This memory is for a batch of {ours.batch} and frames of {ours.rows} x {ours.columns} tokens, "
                f"but the latents have {batch} and {rows} x {columns}; allocate memory for these sizes."
            )
        if frames != ours.block_frames and not (self.frames == 0 and frames < ours.block_frames):
            raise MemoryMismatchError(
                f"This memory takes blocks of {ours.block_frames} frames (only a stream's first block may be "
                f"shorter), but this one has {frames} at frame {self.frames}."
            )
        if any(layer.frames != self.frames for layer in self.layers):
            raise MemoryMismatchError(
                "A clean pass broke off half-way, so layers remember different frames; restore an earlier copy."
            )

    def clone(self) -> "Memory":
        """An independent copy: what happens to one stream does not reach the other."""
        return Memory(self.owner, self.geometry, tuple(layer.clone() for layer in self.layers), self.frames)

    def fingerprint(self) -> str:
        """SHA-256 over everything remembered (not over spare room): equal means bit-identical memory."""
        digest = hashlib.sha256(str(self.frames).encode())
        for layer in self.layers:
            for tensor in layer.valid():
                raw = tensor.detach().cpu().contiguous().view(torch.uint8)
                digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all layers."""
        return sum(layer.nbytes for layer in self.layers)

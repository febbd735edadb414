"""Memory of a softmax layer: keys and values of past frames, all of them or sinks and a window.

Frames are counted in Python integers, so a rollout never waits for the device.
"""

import copy
import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.layer_memory import POSITION_LIMIT, LayerMemory, MemoryGeometry, TensorKind
from arl2.errors import MemoryMismatchError
from arl2.geometry import SinkPositions
from arl2.kernels.rope import turn_frames


class KeyValueCache(LayerMemory):
    """Keys and values of past frames: all of them, or the first ``sink`` frames and a ring of the latest.

    Slots are frames: ``[sinks | ring | room for the current block]``. They are filled in order; once the ring is full,
    a new frame takes the slot of the ring's oldest. Attention does not care about the order of keys, so past and
    current block are always one slice, ``[0, past + current)``: nothing is copied to be read, and nothing that was not
    written is ever seen.

    Keys are kept rotated at their own frame. With ``sink_positions="relative"`` the sinks' are turned again after every
    block that is written, so that they stand right before the oldest frame of the window.

    With a window the buffers are allocated once. Clones share them until one side writes; what nobody shares is
    written in place.
    """

    heads_axis = 2

    def __init__(
        self,
        geometry: MemoryGeometry,
        heads: int,
        head_dim: int,
        *,
        window: int | None,
        sink: int,
        sink_positions: SinkPositions,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if window is not None and window < sink + geometry.block_frames:
            raise MemoryMismatchError(
                f"A window of {window} frames cannot hold {sink} sink frames and a block of {geometry.block_frames}; "
                f"use at least {sink + geometry.block_frames}."
            )
        self.geometry, self.window, self.sink, self.sink_positions = geometry, window, sink, sink_positions
        self.frames = 0
        self._slots: list[int] = []  # the frame in each slot
        # Without a window the cache grows by doubling; with one this is all it will ever take.
        slots = 4 * geometry.block_frames if window is None else window
        shape = (geometry.batch, slots * geometry.frame_tokens, heads, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        # Keys of the sinks as they were written, which their slots are turned from; nothing for absolute sinks.
        self._sink_keys = self._keys.new_zeros(geometry.batch, self._turned * geometry.frame_tokens, heads, head_dim)
        self._sharers: weakref.WeakSet[KeyValueCache] = weakref.WeakSet([self])

    @property
    def past(self) -> int:
        """Frames held now."""
        return len(self._slots)

    def with_block(
        self, k: Float[Tensor, "batch tokens heads head"], v: Float[Tensor, "batch tokens heads head"]
    ) -> tuple[Float[Tensor, "batch seen heads head"], Float[Tensor, "batch seen heads head"]]:
        """Keys and values of the past and of the current block; the past stays as it is.

        The block stands in the spare room now, where :meth:`advance` finds it after a cache-update pass.
        """
        start = self.past * self.geometry.frame_tokens
        self.write(k, v)
        if torch.is_grad_enabled():
            # The spare room is overwritten by the next pass, which autograd could not bear: concatenate instead.
            return torch.cat([self._keys[:, :start], k], dim=1), torch.cat([self._values[:, :start], v], dim=1)
        stop = start + k.shape[1]
        return self._keys[:, :stop], self._values[:, :stop]

    def write(self, k: Float[Tensor, "batch tokens heads head"], v: Float[Tensor, "batch tokens heads head"]) -> None:
        """Put the keys and values of a block into the spare room, until :meth:`advance` finds them their slots.

        Args:
            k: rotated at the block's frames.
        """
        start = self.past * self.geometry.frame_tokens
        self._keys[:, start : start + k.shape[1]] = k.detach()
        self._values[:, start : start + v.shape[1]] = v.detach()

    def prepare(self, frames: int) -> None:
        self._make_writable((self.past + frames) * self.geometry.frame_tokens)

    def advance(self, frames: int) -> None:
        """The block that was written takes its slots, evicting the oldest past the sinks."""
        tokens, spare = self.geometry.frame_tokens, self.past
        for i, slot, count in self._runs_of(frames):
            kept = slice(slot * tokens, (slot + count) * tokens)
            given = slice((spare + i) * tokens, (spare + i + count) * tokens)
            # While the window fills, a block may move by less than its length.
            overlap = slot < spare + i < slot + count
            for own in (self._keys, self._values) if slot != spare + i else ():
                own[:, kept] = own[:, given].clone() if overlap else own[:, given]
            if sinks := max(0, min(self._turned - slot, count)) * tokens:
                self._sink_keys[:, kept.start : kept.start + sinks] = self._keys[:, kept][:, :sinks]
        self.frames += frames
        self._place_sinks()

    def is_steady(self) -> bool:
        return self.window is not None and self.past == self.window - self.geometry.block_frames

    def held(self) -> dict[str, Tensor]:
        stop = self.past * self.geometry.frame_tokens
        tensors = {"keys": self._keys[:, :stop], "values": self._values[:, :stop]}
        return tensors | ({"sink_keys": self._sink_keys[:, :stop]} if self._turned else {})

    def facts(self) -> dict[str, Any]:
        return {**self._settings(), "slots": list(self._slots)}

    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        if not isinstance(facts, dict) or facts.keys() != self.facts().keys():
            raise MemoryMismatchError(f"This layer keeps keys and values, but it was saved as {facts!r:.80}.")
        for name, ours in self._settings().items():
            if facts[name] != ours or type(facts[name]) is not type(ours):
                raise MemoryMismatchError(
                    f"This cache has {name} {ours!r}, but it was saved with {facts[name]!r:.40}; "
                    f"allocate memory with the {name} that it was saved with."
                )
        slots = facts["slots"]
        _check_slots(slots, self.sink, frames)
        if self.window is not None and len(slots) > self.window - self.geometry.block_frames:
            raise MemoryMismatchError(
                f"This cache keeps {self.window - self.geometry.block_frames} past frames, got {len(slots)}."
            )
        batch, _, heads, head_dim = self._keys.shape
        counts = {"keys": len(slots), "values": len(slots), "sink_keys": min(len(slots), self._turned)}
        tokens = self.geometry.frame_tokens
        return {
            name: TensorKind([batch, counts[name] * tokens, heads, head_dim], self._keys.dtype) for name in self.held()
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        self._slots = []  # nothing that was held is worth copying
        self._make_writable(len(facts["slots"]) * self.geometry.frame_tokens)
        self._slots, self.frames = list(facts["slots"]), frames
        for name, own in self.held().items():
            own.copy_(tensors[name].detach())

    def fill_random(self, frames: int, generator: torch.Generator) -> None:
        kept = frames if self.window is None else min(frames, self.window - self.geometry.block_frames)
        sinks = min(self.sink, kept)
        self._slots = []  # nothing that was held is worth copying
        self._make_writable(kept * self.geometry.frame_tokens)
        self._slots, self.frames = [*range(sinks), *range(frames - kept + sinks, frames)], frames
        for own in self.held().values():
            own.normal_(generator=generator)
        self._place_sinks()

    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        self._slots = [sink for sink in self._slots[: self.sink] if keep_sinks and sink < frame]
        self.frames = frame
        self._place_sinks()

    def move_origin(self, frames: int) -> None:
        self._make_writable(0)
        for name, own in self.held().items():
            if name != "values":
                own.copy_(turn_frames(own, [-frames]))
        self._slots = [slot - frames for slot in self._slots]
        self.frames -= frames

    def clone(self) -> "KeyValueCache":
        """An independent copy that shares buffers until one side writes."""
        twin = copy.copy(self)
        twin._slots = list(self._slots)
        self._sharers.add(twin)
        return twin

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes + self._sink_keys.nbytes

    @property
    def shared(self) -> int:
        return self.nbytes if len(self._sharers) > 1 else 0

    @property
    def _turned(self) -> int:
        """Sinks that do not stay where they were written."""
        return self.sink if self.sink_positions == "relative" else 0

    def _settings(self) -> dict[str, Any]:
        return {"kind": "cache", "window": self.window, "sink": self.sink, "sink_positions": self.sink_positions}

    def _kept_of(self, frames: int) -> list[int]:
        """Which frames of a block stay: not those that its later frames push out of the ring at once."""
        if self.window is None:
            return list(range(frames))
        sinks = max(0, min(frames, self.sink - self.past))
        ring = self.window - self.geometry.block_frames - self.sink
        return [i for i in range(frames) if i < sinks or i >= frames - ring]

    def _runs_of(self, frames: int) -> list[tuple[int, int, int]]:
        """Where the frames that stay of a block go: first frame, first slot, number; each is one copy on the device."""
        runs: list[tuple[int, int, int]] = []
        for i in self._kept_of(frames):
            slot = self._take_slot(self.frames + i)
            if runs and (i, slot) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
                runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
            else:
                runs.append((i, slot, 1))
        return runs

    def _take_slot(self, frame: int) -> int:
        """The slot for a new frame: a fresh one, or that of the ring's oldest."""
        if self.window is None or self.past < self.window - self.geometry.block_frames:
            self._slots.append(frame)
            return self.past - 1
        slot = min(range(self.sink, self.past), key=self._slots.__getitem__)
        self._slots[slot] = frame
        return slot

    def _place_sinks(self) -> None:
        """Turn relative sinks to where the next block shall see them: right before the window's oldest frame.

        Once a block, not once a pass. Until the window slides they turn by nothing, which is exact.
        """
        sinks = self._slots[: self._turned]
        if not sinks:
            return
        self._make_writable(0)
        oldest = min(self._slots[self.sink :], default=self.frames)
        moves = [oldest - len(sinks) + i - sink for i, sink in enumerate(sinks)]
        stop = len(sinks) * self.geometry.frame_tokens
        self._keys[:, :stop] = turn_frames(self._sink_keys[:, :stop], moves)

    def _make_writable(self, tokens: int) -> None:
        """Before writing: room for ``tokens``, in buffers that no clone reads."""
        room, alone = self._keys.shape[1], len(self._sharers) == 1
        if tokens <= room and alone:
            return
        while room < tokens:
            room *= 2
        used = self.past * self.geometry.frame_tokens
        self._keys, self._values = _copied(self._keys, used, room), _copied(self._values, used, room)
        if not alone:
            self._sink_keys = self._sink_keys.clone()
            # Only now: a clone that finds itself alone writes at once, perhaps on another thread.
            self._sharers.discard(self)
            self._sharers = weakref.WeakSet([self])


def _check_slots(slots: object, sink: int, frames: int) -> None:
    """Slots as a cache fills them: sinks in order, then the latest frames up to ``frames`` in any order."""
    if not isinstance(slots, list) or not all(type(slot) is int for slot in slots):
        raise MemoryMismatchError(f"The slots of a cache must be a list of frame numbers; got {slots!r:.80}.")
    sinks, ring = slots[:sink], sorted(slots[sink:])
    first = frames - len(ring)
    ascending = all(a < b for a, b in itertools.pairwise([-POSITION_LIMIT, *sinks, first]))
    if not ascending or ring != list(range(first, frames)):
        raise MemoryMismatchError(
            f"The slots of a cache hold its sinks, then the latest frames before {frames}; got {slots!r:.80}."
        )


def _copied(old: Tensor, used: int, room: int) -> Tensor:
    """A buffer of ``room`` tokens that begins with the ``used`` tokens of ``old``."""
    new = old.new_zeros(old.shape[0], room, *old.shape[2:])
    new[:, :used] = old[:, :used]
    return new

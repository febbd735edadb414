"""Memory of all layers of one model: what a stream remembers, kept by the caller.

Memory is allocated once and counted in Python integers, so a rollout never waits for the device. What is written is
detached: gradients do not flow from one block's memory into another pass.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from arl2.attention.key_value_cache import KeyValueCache as KeyValueCache
from arl2.attention.layer_memory import POSITION_LIMIT, TensorKind, check_tensors
from arl2.attention.layer_memory import LayerMemory as LayerMemory
from arl2.attention.layer_memory import MemoryGeometry as MemoryGeometry
from arl2.attention.recurrent_state import RecurrentState as RecurrentState
from arl2.attention.sequence_parallel import ALONE, SequenceParallel
from arl2.errors import ConfigError, MemoryMismatchError


@dataclass(frozen=True)
class ModelIdentity:
    """What memory and prompts in use must match: plan and sizes of the model, its dtype and device.

    Attributes:
        signature: plan and sizes in words, as snapshots store them.
        ranks: processes that share its heads.
    """

    signature: str
    dtype: torch.dtype
    device: torch.device
    ranks: int = 1

    def __str__(self) -> str:
        shared = f" as one of {self.ranks} processes" if self.ranks > 1 else ""
        return f"{self.signature}, {self.dtype} on {self.device}{shared}"


@dataclass
class Memory:
    """Memory of all layers of one model for one batch of streams.

    Attributes:
        owner: the model that allocated it; another model's memory is refused.
        geometry: batch, token grid and block it was allocated for.
        layers: one entry a layer.
        frames: position of the next block: frames committed since the stream began, unless it was made to begin later.
        start: position of the first block.
        is_whole: False while a cache-update pass writes, and if it broke off half-way.
        parallel: this rank of those that share the heads; what is remembered is of its own.
    """

    owner: ModelIdentity
    geometry: MemoryGeometry
    layers: tuple[LayerMemory, ...]
    frames: int = 0
    start: int = 0
    is_whole: bool = True
    parallel: SequenceParallel = ALONE

    def __post_init__(self) -> None:
        unsplit = [type(layer).__name__ for layer in self.layers if layer.heads_axis is None]
        if self.parallel.ranks > 1 and unsplit:
            raise ConfigError(f"{unsplit[0]} does not say which axis its heads are in; give it a heads_axis.")

    def check(self, owner: ModelIdentity, batch: int, rows: int, columns: int, frames: int) -> None:
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
        if frames != ours.block_frames and not (self.frames == self.start and frames < ours.block_frames):
            raise MemoryMismatchError(
                f"This memory takes blocks of {ours.block_frames} frames (only a stream's first block may be "
                f"shorter), but this one has {frames} at frame {self.frames}."
            )
        self._check_whole()

    def prepare(self, frames: int) -> None:
        """Before a pass over a block of ``frames`` frames: room for it, so that the pass touches tensors alone."""
        for layer in self.layers:
            layer.prepare(frames)

    def advance(self, frames: int) -> None:
        """After a cache-update pass: its block counts, and what it has left goes to its place."""
        for layer in self.layers:
            layer.advance(frames)
        self.frames += frames
        self.is_whole = True

    @property
    def is_steady(self) -> bool:
        """Whether every whole block from here on meets tensors of the same shapes at the same places."""
        return all(layer.is_steady() for layer in self.layers)

    @property
    def is_blank(self) -> bool:
        """Whether some layer skips the read of a state, since nothing was written to it."""
        return any(layer.is_blank for layer in self.layers)

    def begin_at(self, frame: int, *, keep_sinks: bool = False) -> None:
        """Continue at ``frame`` with empty windows, for cache-update passes to fill. Constant memory stays.

        What was not written since is never attended to. The next block may be shorter than the others.

        Args:
            frame: position of the next block.
            keep_sinks: keep the sinks that stand before ``frame``; otherwise the next frames become the sinks.

        Raises:
            MemoryMismatchError: a frame that is no position.
        """
        if type(frame) is not int or not 0 <= frame < POSITION_LIMIT:
            raise MemoryMismatchError(f"A stream begins at a whole frame number from 0; got {frame!r:.40}.")
        for layer in self.layers:
            layer.begin_at(frame, keep_sinks=keep_sinks)
        self.frames = self.start = frame
        self.is_whole = True

    def fill_random(self, frames: int, *, seed: int = 0) -> None:
        """Stand where a stream stands after ``frames`` frames, with random numbers for keys, values and states.

        Sizes, positions and time of what follows are those of such a stream; nobody has to roll it out.

        Raises:
            MemoryMismatchError: a number of frames that is no position.
        """
        if type(frames) is not int or not 0 <= frames < POSITION_LIMIT:
            raise MemoryMismatchError(f"A memory is filled with a whole number of frames from 0; got {frames!r:.40}.")
        draw = torch.Generator(self.owner.device).manual_seed(seed)
        for layer in self.layers:
            layer.fill_random(frames, draw)
        self.frames, self.start, self.is_whole = frames, 0, True

    def move_origin(self, frames: int) -> None:
        """Count positions from ``frames`` frames later: everything kept turns back, and what follows stays the same.

        States with a horizon are renewed at other blocks then, unless ``frames`` is a multiple of half of it.

        Angles are exact at any frame, so no stream needs this; two streams can be brought to one position by it. Each
        move rounds keys and states once.

        Raises:
            MemoryMismatchError: a move that would leave the next block before frame 0.
        """
        if not 0 <= self.frames - frames < POSITION_LIMIT:
            raise MemoryMismatchError(f"The next block is at frame {self.frames}; {frames} is too far to move by.")
        self._check_whole()
        for layer in self.layers:
            layer.move_origin(frames)
        self.frames, self.start = self.frames - frames, self.start - frames

    def tensors(self) -> dict[str, Tensor]:
        """Everything remembered, without spare room, as copies named like ``layers.3.state``, ``layers.5.keys``.

        With :meth:`facts` this is all that :meth:`restore` needs to continue with the same bits.

        Raises:
            MemoryMismatchError: a cache-update pass broke off half-way.
        """
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in self.views().items()}

    def views(self) -> dict[str, Tensor]:
        """As :meth:`tensors`, but views: to be read before the next pass, and never written.

        Raises:
            MemoryMismatchError: a cache-update pass broke off half-way.
        """
        self._check_whole()
        return self._held()

    def facts(self) -> dict[str, Any]:
        """What the tensors do not tell, as JSON holds it: sizes, positions, and which frame lies where.

        Raises:
            MemoryMismatchError: a cache-update pass broke off half-way.
        """
        self._check_whole()
        layers = [layer.facts() for layer in self.layers]
        return {"geometry": asdict(self.geometry), "frames": self.frames, "start": self.start, "layers": layers}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Remember exactly what another memory of the same model and sizes did; what was remembered here is dropped.

        All is checked before anything is changed: the two may come from a file.

        Raises:
            MemoryMismatchError: tensors or facts of another model, window, size or dtype, or that make no sense.
        """
        frames, told = self._checked_facts(facts)
        expected = [layer.expected(own, frames) for layer, own in zip(self.layers, told, strict=True)]
        named = {f"layers.{i}.{name}": kind for i, own in enumerate(expected) for name, kind in own.items()}
        check_tensors(named, tensors)
        for i, layer in enumerate(self.layers):
            layer.restore({name: tensors[f"layers.{i}.{name}"] for name in expected[i]}, told[i], frames)
        self.frames, self.start, self.is_whole = frames, facts["start"], True

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`views` or :meth:`states` gave, with the heads of all ranks, on the first; empty on the others.

        All ranks call it together; one rank alone has all heads as they are.
        """
        if self.parallel.ranks == 1:
            return dict(tensors)
        axes = self._heads_axes()
        whole = {name: self.parallel.gathered(x, axes[name]) for name, x in tensors.items()}
        return {name: x for name, x in whole.items() if x is not None}

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's heads of what :meth:`gathered` gave, for :meth:`restore` and :meth:`restore_states`.

        The tensors may come from a file: what does not fit is left to these two to refuse.
        """
        axes = self._heads_axes()
        return {name: self.parallel.share(x, axes[name]) if name in axes else x for name, x in tensors.items()}

    @property
    def has_window(self) -> bool:
        """Whether some layer keeps a window, which latents can fill again."""
        return any(layer.has_window for layer in self.layers)

    def states(self) -> dict[str, Tensor]:
        """Copies of what layers keep in constant size, named as in :meth:`tensors`: a light snapshot's share."""
        return {name: state.clone() for name, state in self._states().items()}

    def restore_states(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what :meth:`states` gave; windows and positions stay.

        Raises:
            MemoryMismatchError: other states than this memory keeps.
        """
        own = self._states()
        check_tensors({name: TensorKind(list(state.shape), state.dtype) for name, state in own.items()}, tensors)
        for i, layer in enumerate(self.layers):
            layer.restore_constant({name: tensors[f"layers.{i}.{name}"] for name in layer.constant()})

    def scale_states(self, factor: float) -> None:
        """Multiply the constant memory: below 1 the past fades, 0 forgets it. Windows stay.

        Raises:
            MemoryMismatchError: a factor that is negative or not finite.
        """
        if not (math.isfinite(factor) and factor >= 0):
            raise MemoryMismatchError(f"States are scaled by a finite number from 0; got {factor!r}.")
        for state in self._states().values():
            state.mul_(factor)

    def take_back_states(self, blocks: int, *, begun: bool = False) -> None:
        """Before each of the last blocks is committed again: no state that lags behind its window takes one in twice.

        Such a state already knows what its window has lost, and learns of the rest when the window loses it. The states
        of other layers stay, and take the blocks in once more.

        Args:
            blocks: how many are still to come, the next included.
            begun: whether others came before it.
        """
        for layer in self.layers:
            if not begun or blocks >= layer.states_lag:
                layer.take_back_states()

    def clone(self) -> "Memory":
        """An independent copy: what happens to one stream does not reach the other.

        States are copied; windows share their buffers until one side writes, and for good if the other is dropped.
        """
        return replace(self, layers=tuple(layer.clone() for layer in self.layers))

    def fingerprint(self) -> str:
        """SHA-256 over everything remembered (not over spare room): equal means bit-identical memory."""
        digest = hashlib.sha256(str(self.frames).encode())
        for tensor in self._held().values():
            raw = tensor.detach().cpu().contiguous().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all layers, those shared with clones included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def shared(self) -> int:
        """Of ``nbytes``, those that living clones use, too."""
        return sum(layer.shared for layer in self.layers)

    def _held(self) -> dict[str, Tensor]:
        """Views of everything remembered."""
        return {f"layers.{i}.{name}": t for i, layer in enumerate(self.layers) for name, t in layer.held().items()}

    def _heads_axes(self) -> dict[str, int]:
        """Of every tensor remembered, by name."""
        axes: dict[str, int] = {}
        for i, layer in enumerate(self.layers):
            if layer.heads_axis is not None:
                axes |= {f"layers.{i}.{name}": layer.heads_axis for name in layer.held()}
        return axes

    def _states(self) -> dict[str, Tensor]:
        return {f"layers.{i}.{name}": t for i, layer in enumerate(self.layers) for name, t in layer.constant().items()}

    def _check_whole(self) -> None:
        if not self.is_whole:
            raise MemoryMismatchError(
                "A cache-update pass broke off half-way, so layers remember different frames; restore an earlier copy."
            )

    def _checked_facts(self, facts: object) -> tuple[int, list[object]]:
        """Position and facts of the layers."""
        names = ("geometry", "frames", "start", "layers")
        if not isinstance(facts, Mapping) or facts.keys() != set(names):
            raise MemoryMismatchError(f"The facts of a memory are {', '.join(names)}, got {facts!r:.80}.")
        if facts["geometry"] != asdict(self.geometry):
            raise MemoryMismatchError(
                f"This memory is for {asdict(self.geometry)}, but what should be restored was of "
                f"{facts['geometry']!r:.120}; allocate memory for these sizes."
            )
        frames, start = facts["frames"], facts["start"]
        if type(frames) is not int or type(start) is not int or not 0 <= frames < POSITION_LIMIT or start > frames:
            raise MemoryMismatchError(
                f"A memory stands at a whole frame number from 0 and began at or before it; got {frames!r:.40} and "
                f"{start!r:.40}."
            )
        layers = facts["layers"]
        if not isinstance(layers, list) or len(layers) != len(self.layers):
            raise MemoryMismatchError(f"This memory has {len(self.layers)} layers, but the facts tell of other ones.")
        return frames, layers

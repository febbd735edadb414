"""Memory of a windowed hybrid layer: a key-value cache of the window beside recurrent states."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.horizon import is_renewed
from arl2.attention.key_value_cache import KeyValueCache
from arl2.attention.layer_memory import LayerMemory, MemoryGeometry, TensorKind
from arl2.attention.recurrent_state import may_hold_something
from arl2.errors import MemoryMismatchError
from arl2.kernels.rope import turn_state


class WindowedMemory(LayerMemory):
    """A window, and the states after the latest blocks, ``[B, n, H, D, D]`` float32, oldest first.

    The newest state is what a block is written to. The oldest is what is read: with ``n = 1`` it is the same, with more
    it does not know of the latest ``n - 1`` blocks, which the window shows. Blocks shift them by one place, so that
    addresses and shapes stay the same for ever.

    Args:
        geometry: that it is allocated for.
        states: zero.
        cache: of the window; None for a layer that sees the own block alone.
        turns: whether keys in the states are rotated by their frames.
        horizon: latent frames that the state reaches back (:mod:`arl2.attention.horizon`), with ``n = 1``; a second
            state is then beside it. None: to the first frame.
    """

    heads_axis = 2

    def __init__(
        self,
        geometry: MemoryGeometry,
        states: Tensor,
        cache: KeyValueCache | None,
        *,
        turns: bool,
        horizon: int | None = None,
    ) -> None:
        self.frame_tokens = geometry.frame_tokens
        self.states, self.cache, self.turns = states, cache, turns
        self.horizon, self.younger = horizon, None if horizon is None else torch.zeros_like(states)
        self.block_frames = geometry.block_frames
        self.frames = 0
        self._written = 0  # of the newest states, those that something was written to; the others are zero

    def read(self) -> Float[Tensor, "batch heads key value"]:
        """The state that blocks read. A copy while gradients are recorded: a later write would spoil what they need."""
        return self._state(0)

    def newest(self) -> Float[Tensor, "batch heads key value"]:
        """The state that the next block is written to."""
        return self._state(-1)

    def write(self, state: Float[Tensor, "batch heads key value"]) -> None:
        """The state after a block becomes the newest."""
        if self.is_blank:  # a compiled pass, which never finds it blank, counts nothing
            self._written += 1
        if self.states.shape[1] > 1:
            self.states[:, :-1] = self.states[:, 1:].clone()
        self.states[:, -1] = state.detach()

    def update(self, advance: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> None:
        """Write a block; ``advance`` gives states after it."""
        if self.younger is None:
            (state,) = advance([self.newest()])
        else:
            state, younger = advance([self.newest(), self.younger[:, -1]])
            self.younger[:, -1] = younger.detach()
        self.write(state)

    @property
    def is_blank(self) -> bool:
        """Whether nothing has come to the state that blocks read, so that it is zero."""
        return self._written < self.states.shape[1]

    def prepare(self, frames: int) -> None:
        if self.cache is not None:
            self.cache.prepare(frames)

    def advance(self, frames: int) -> None:
        before = self.frames
        self.frames += frames
        if self.younger is not None and is_renewed(before, self.frames, self.horizon):
            self.states.copy_(self.younger)
            self.younger.zero_()
        if self.cache is not None:
            self.cache.advance(frames)

    def is_steady(self) -> bool:
        # Layers skip the read of a blank state. A pass that is recorded has to read it.
        return not self.is_blank and (self.cache is None or self.cache.is_steady())

    @property
    def has_window(self) -> bool:
        return self.cache is not None

    def held(self) -> dict[str, Tensor]:
        return {**({} if self.cache is None else self.cache.held()), **self.constant()}

    def constant(self) -> dict[str, Tensor]:
        younger = {} if self.younger is None else {"younger": self.younger}
        return {"states": self.states, **younger}

    def facts(self) -> dict[str, Any]:
        # Those of the window as they are: what is a list there changes from block to block, and graphs look for that.
        return {"kind": "states"} if self.cache is None else {**self.cache.facts(), "kind": "window and states"}

    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        own = self.facts()
        if not isinstance(facts, dict) or facts.get("kind") != own["kind"] or facts.keys() != own.keys():
            raise MemoryMismatchError(f"This layer keeps {own['kind']}, but it was saved as {facts!r:.80}.")
        cached = {} if self.cache is None else self.cache.expected(self._of_cache(facts), frames)
        return cached | {name: TensorKind(list(own.shape), own.dtype) for name, own in self.constant().items()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        self.restore_constant(tensors)
        if self.cache is not None:
            self.cache.restore(tensors, self._of_cache(facts), frames)
        self.frames = frames

    def restore_constant(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore_constant(tensors)
        known = [may_hold_something(state) for state in self.states.unbind(1)]
        self._written = len(known) - known.index(True) if any(known) else 0

    def fill_random(self, frames: int, generator: torch.Generator) -> None:
        for own in self.constant().values():
            own.normal_(generator=generator)
        self._written = self.states.shape[1]
        if self.cache is not None:
            self.cache.fill_random(frames, generator)
        self.frames = frames

    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        if self.cache is not None:
            self.cache.begin_at(frame, keep_sinks=keep_sinks)
        self.frames = frame

    @property
    def states_lag(self) -> int:
        return self.states.shape[1] - 1

    def take_back_states(self) -> None:
        if self.is_blank:
            self._written = 0
        self.states[:, 1:] = self.states[:, :1]
        if self.younger is not None and is_renewed(self.frames, self.frames + self.block_frames, self.horizon):
            self.younger.copy_(self.states)

    def move_origin(self, frames: int) -> None:
        if self.turns:
            for own in self.constant().values():
                own.copy_(turn_state(own.flatten(0, 1), -frames).view_as(own))
        if self.cache is not None:
            self.cache.move_origin(frames)
        self.frames -= frames

    def clone(self) -> "WindowedMemory":
        """An independent copy; the window's buffers are shared until one side writes."""
        twin = copy.copy(self)
        twin.states = self.states.clone()
        twin.younger = None if self.younger is None else self.younger.clone()
        twin.cache = None if self.cache is None else self.cache.clone()
        return twin

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in self.constant().values()) + (0 if self.cache is None else self.cache.nbytes)

    @property
    def shared(self) -> int:
        return 0 if self.cache is None else self.cache.shared

    def _of_cache(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        assert self.cache is not None
        return {**facts, "kind": self.cache.facts()["kind"]}

    def _state(self, place: int) -> Tensor:
        state = self.states[:, place]
        return state.clone() if torch.is_grad_enabled() else state

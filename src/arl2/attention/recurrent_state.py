"""Memory of a hybrid layer: one matrix per head that takes the same bytes for ever."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.horizon import is_renewed
from arl2.attention.layer_memory import ConstantMemory, MemoryGeometry
from arl2.kernels.rope import turn_state


class RecurrentState(ConstantMemory):
    """One ``D x D`` matrix per head, float32: the same bytes from the first block to the millionth.

    With a horizon (latent frames) a second one beside it takes its place when it is old, see
    :mod:`arl2.attention.horizon`.
    """

    heads_axis = 1

    def __init__(
        self,
        geometry: MemoryGeometry,
        heads: int,
        head_dim: int,
        device: torch.device | str,
        *,
        horizon: int | None = None,
    ) -> None:
        shape = (geometry.batch, heads, head_dim, head_dim)
        names = ("state",) if horizon is None else ("state", "younger")
        super().__init__(geometry, {name: torch.zeros(shape, dtype=torch.float32, device=device) for name in names})
        self.horizon, self.block_frames = horizon, geometry.block_frames
        self._is_written = False

    @property
    def state(self) -> Float[Tensor, "batch heads key value"]:
        """As it is now; the next write changes it in place."""
        return self.tensors["state"]

    def read(self) -> Float[Tensor, "batch heads key value"]:
        """The state. A copy while gradients are recorded: a later write in place would spoil what they need."""
        return self.state.clone() if torch.is_grad_enabled() else self.state

    def write(self, state: Float[Tensor, "batch heads key value"]) -> None:
        """Replace the state by the one after a block."""
        if not self._is_written:  # a compiled pass, which always finds it written, assigns nothing
            self._is_written = True
        self.state.copy_(state.detach())

    def update(self, advance: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> None:
        """Write a block; ``advance`` gives states after it."""
        if self.horizon is None:
            (state,) = advance([self.read()])
        else:
            state, younger = advance([self.read(), self.tensors["younger"]])
            self.tensors["younger"].copy_(younger.detach())
        self.write(state)

    def advance(self, frames: int) -> None:
        before = self.frames
        super().advance(frames)
        if is_renewed(before, self.frames, self.horizon):
            self.state.copy_(self.tensors["younger"])
            self.tensors["younger"].zero_()

    def take_back_states(self) -> None:
        if is_renewed(self.frames, self.frames + self.block_frames, self.horizon):
            self.tensors["younger"].copy_(self.state)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever written, so that what is read is zero."""
        return not self._is_written

    def is_steady(self) -> bool:
        # Layers skip the read of a blank state. A pass that is recorded has to read it.
        return self._is_written

    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        super().restore(tensors, facts, frames)
        self._is_written = may_hold_something(self.state)

    def restore_constant(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore_constant(tensors)
        self._is_written = may_hold_something(self.state)

    def fill_random(self, frames: int, generator: torch.Generator) -> None:
        super().fill_random(frames, generator)
        self._is_written = True

    def turned(self, name: str, tensor: Tensor, frames: int) -> Tensor:
        return turn_state(tensor, frames)


def may_hold_something(state: Tensor) -> bool:
    """Whether a restored state is more than zeros, so that a stream that goes back to its start has the same bits.

    A GPU is not waited for: there it may, and reading zeros has the bits of not reading.
    """
    return state.device.type != "cpu" or bool(state.any())

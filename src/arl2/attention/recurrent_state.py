"""Memory of a hybrid layer: one matrix per head that takes the same bytes for ever."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.layer_memory import LayerMemory, MemoryGeometry, TensorKind
from arl2.errors import MemoryMismatchError
from arl2.kernels.rope import turn_state


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

    def held(self) -> dict[str, Tensor]:
        return {"state": self.state}

    def facts(self) -> dict[str, Any]:
        return {"kind": "state"}

    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        if facts != self.facts():
            raise MemoryMismatchError(f"This layer is hybrid and keeps a state, but it was saved as {facts!r:.80}.")
        return {"state": TensorKind(list(self.state.shape), self.state.dtype)}

    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        self.state.copy_(tensors["state"].detach())
        self.frames = frames

    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        self.frames = frame

    def move_origin(self, frames: int) -> None:
        self.state.copy_(turn_state(self.state, -frames))
        self.frames -= frames

    def clone(self) -> "RecurrentState":
        twin = copy.copy(self)
        twin.state = self.state.clone()
        return twin

    @property
    def nbytes(self) -> int:
        return self.state.nbytes

    @property
    def shared(self) -> int:
        return 0

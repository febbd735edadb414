"""Memory of a hybrid layer: one matrix per head that takes the same bytes for ever."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.layer_memory import ConstantMemory, MemoryGeometry
from arl2.kernels.rope import turn_state


class RecurrentState(ConstantMemory):
    """One ``D x D`` matrix per head, float32: the same bytes from the first block to the millionth."""

    heads_axis = 1

    def __init__(self, geometry: MemoryGeometry, heads: int, head_dim: int, device: torch.device | str) -> None:
        shape = (geometry.batch, heads, head_dim, head_dim)
        super().__init__(geometry, {"state": torch.zeros(shape, dtype=torch.float32, device=device)})

    @property
    def state(self) -> Float[Tensor, "batch heads key value"]:
        """As it is now; the next write changes it in place."""
        return self.tensors["state"]

    def read(self) -> Float[Tensor, "batch heads key value"]:
        """The state. A copy while gradients are recorded: a later write in place would spoil what they need."""
        return self.state.clone() if torch.is_grad_enabled() else self.state

    def write(self, state: Float[Tensor, "batch heads key value"]) -> None:
        """Replace the state by the one after a block."""
        self.state.copy_(state.detach())

    def turned(self, name: str, tensor: Tensor, frames: int) -> Tensor:
        return turn_state(tensor, frames)

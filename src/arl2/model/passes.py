"""The ways to run the transformer, each with all that it needs; there is no default among them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from arl2.attention.access import Access
from arl2.attention.memory import Memory


@dataclass(frozen=True)
class Stream:
    """One block of a stream, at the position where ``memory`` stands.

    ``READ`` predicts the flow and leaves memory as it is. ``COMMIT`` writes memory and predicts nothing.
    """

    memory: Memory
    access: Access


@dataclass(frozen=True)
class DiffusionForcing:
    """A whole clip, one noise level per block; what a block remembers of earlier ones is their noisy selves."""

    first_block_frames: int | None = None


@dataclass(frozen=True)
class TeacherForcing:
    """A whole clip twice: every noisy block remembers the *clean* earlier blocks, as in a rollout.

    Attributes:
        clean: latents ``[B, C, F, h, w]`` of the same clip.
        context_timestep: timestep of the clean copies (``context_noise``).
    """

    clean: Float[Tensor, "batch channels frames height width"]
    context_timestep: float = 0.0
    first_block_frames: int | None = None


Pass = Stream | DiffusionForcing | TeacherForcing

"""The two ways to run the transformer over a whole clip in parallel, as training does."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class DiffusionForcing:
    """A clip with one timestep per block; what a block remembers of earlier ones is their noisy selves."""

    first_block_frames: int | None = None


@dataclass(frozen=True)
class TeacherForcing:
    """A clip twice: every noisy block remembers the *clean* earlier blocks, as in a rollout.

    Attributes:
        clean: latents ``[B, C, F, h, w]`` of the same clip.
        context_timestep: timestep of the clean copies (``context_noise``).
    """

    clean: Float[Tensor, "batch channels frames height width"]
    context_timestep: float = 0.0
    first_block_frames: int | None = None


ParallelPass = DiffusionForcing | TeacherForcing

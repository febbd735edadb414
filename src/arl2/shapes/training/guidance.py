"""Autoguidance (arXiv 2406.02507): away from what a weaker model of the same kind predicts.

A student trained on the guided flow needs one pass instead of two (guidance distillation, arXiv 2210.03142).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.shapes.training.captioned import Captioned


class Autoguidance:
    """Two frozen models: ``v = good + weight (good - weak)``, for clips of a single block, or for longer ones.

    Args:
        good, weak: embedded models' names, or folders of exports.
        weight: 0 is the good model alone.
        device: of both.

    Raises:
        ConfigError: a negative weight.
        CheckpointError: a folder that is no export, or a name of no model.
    """

    def __init__(self, good: str, weak: str, *, weight: float, device: torch.device) -> None:
        if weight < 0:
            raise ConfigError(f"guide_weight is {weight}; give a number from 0.")
        self.weight = weight
        self._good, self._weak = (Captioned(name, device).frozen() for name in (good, weak))

    @torch.no_grad()
    def push(
        self,
        noisy: Float[Tensor, "clips channels frames height width"],
        timestep: Float[Tensor, "clips frames"],
        captions: list[str],
        run: DiffusionForcing | TeacherForcing | None = None,
    ) -> Float[Tensor, "clips channels frames height width"]:
        """``weight (good - weak)``: what guidance adds to a flow; ``run`` says what precedes each block."""
        good, weak = (one.flow(noisy, timestep, captions, run) for one in (self._good, self._weak))
        return self.weight * (good - weak)

    @torch.no_grad()
    def flow(
        self,
        noisy: Float[Tensor, "clips channels frames height width"],
        timestep: Float[Tensor, "clips frames"],
        captions: list[str],
    ) -> Float[Tensor, "clips channels frames height width"]:
        """The guided prediction."""
        good, weak = (one.flow(noisy, timestep, captions) for one in (self._good, self._weak))
        return good + self.weight * (good - weak)

"""Autoguidance (arXiv 2406.02507) and its distillation: away from what a weaker model of the same kind would predict.

Where two models that differ in training alone disagree, the better one is better by about that much again. The guided
flow takes two models and two passes; a copy trained to predict it takes one (as guidance is distilled in
arXiv 2210.03142).
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.shapes.text import ShapesText


class Autoguidance:
    """Two frozen models: ``v = good + weight (good - weak)``, for clips of a single block, or for longer ones.

    Args:
        good, weak: folders of exports (``transformer`` and ``text``).
        weight: 0 is the good model alone.
        device: of both.

    Raises:
        ConfigError: a negative weight.
        CheckpointError: a folder that is no export.
    """

    def __init__(self, good: Path, weak: Path, *, weight: float, device: torch.device) -> None:
        if weight < 0:
            raise ConfigError(f"guide_weight is {weight}; give a number from 0.")
        self.weight = weight
        self._good, self._weak = (_Frozen(folder, device) for folder in (good, weak))

    @torch.no_grad()
    def push(
        self,
        noisy: Float[Tensor, "clips channels frames height width"],
        timestep: Float[Tensor, "clips frames"],
        captions: list[str],
        run: DiffusionForcing | TeacherForcing | None = None,
    ) -> Float[Tensor, "clips channels frames height width"]:
        """``weight (good - weak)``: what guidance adds to a flow; ``run`` says what stands before each block."""
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


def load_export(folder: Path) -> tuple[CausalWanTransformer3DModel, ShapesText]:
    """Transformer and text part of a teacher run's export, in float32; raises ``CheckpointError`` for what is none."""
    if not (folder / "transformer" / "config.json").is_file():
        raise CheckpointError(f"'{folder}' has no transformer/config.json; give the export of a teacher's run.")
    model = CausalWanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    text = ShapesText.from_pretrained(folder / "text")
    text.words.encoder.float()
    return model, text


class _Frozen:
    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model, self.text = load_export(folder)
        self.model.to(device).eval().requires_grad_(False)
        self.text.words.encoder.to(device).eval().requires_grad_(False)

    def flow(
        self, noisy: Tensor, timestep: Tensor, captions: list[str], run: DiffusionForcing | TeacherForcing | None = None
    ) -> Tensor:
        flow = self.model(noisy, timestep, self.text.encode_captions(captions), run=run or DiffusionForcing())
        assert flow is not None
        return flow

"""A model of the shapes world with its own text part, as a student or as a teacher."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.parts import load_part
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.transformer import FOR_OTHER_READERS, CausalWanTransformer3DModel
from arl2.pipeline.folder import TRANSFORMER, pipeline_folder
from arl2.shapes.prompts.text import ShapesText


class Captioned:
    """Predicts the flow of noisy clips from their captions; in float32 and training mode.

    Args:
        name: of an embedded model, or the folder of a run's export.
        device: of both parts.

    Raises:
        CheckpointError: neither, or a damaged one.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.model, self.text = load_export(name)
        self.model.to(device).train()
        self.text.encoder.to(device).train()

    def frozen(self) -> "Captioned":
        """Itself, without gradients from now on."""
        self.model.eval().requires_grad_(False)
        self.text.encoder.eval().requires_grad_(False)
        return self

    def flow(
        self,
        noisy: Float[Tensor, "clips channels frames height width"],
        timestep: Float[Tensor, "clips frames"],
        captions: list[str],
        run: DiffusionForcing | TeacherForcing | None = None,
    ) -> Float[Tensor, "clips channels frames height width"]:
        """``run`` says what precedes each block; None: each clip is one first block."""
        flow = self.model(noisy, timestep, self.text.encode_captions(captions), run=run or DiffusionForcing())
        return flow


def load_export(name: str) -> tuple[CausalWanTransformer3DModel, ShapesText]:
    """Transformer and text part, in float32, of an embedded model's name or of the folder of a run's export.

    Raises:
        CheckpointError: neither, or a damaged one.
    """
    folder = pipeline_folder(name)
    if not (folder.transformer / "config.json").is_file():
        raise CheckpointError(f"'{name}' has no {TRANSFORMER}/config.json; give a model's name or a run's export.")
    model: CausalWanTransformer3DModel = load_part(
        CausalWanTransformer3DModel, folder.transformer, dtype=torch.float32, ignored=FOR_OTHER_READERS
    )
    text = ShapesText.from_pretrained(folder.text)
    text.encoder.float()
    return model, text

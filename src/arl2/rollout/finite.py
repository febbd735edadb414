"""Why a result is not finite: the weights, what was given, or the dtype."""

from collections.abc import Iterable

import torch
from torch import Tensor

from arl2.errors import NonFiniteError
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache


def require_finite(
    results: Iterable[Tensor], model: CausalWanTransformer3DModel, latents: Tensor, prompt: PromptCache
) -> None:
    """Refuse results with NaN or infinity; waits for the device.

    Args:
        results: of a pass.
        latents, prompt: what the pass was given.

    Raises:
        NonFiniteError: the message names what is at fault.
    """
    if all(_is_finite(result) for result in results):
        return
    broken = [name for name, parameter in model.named_parameters() if not _is_finite(parameter)]
    if broken:
        raise NonFiniteError(
            f"{len(broken)} weight tensors contain NaN or infinity, first {', '.join(broken[:3])}; "
            "load the checkpoint again from its source."
        )
    for name, given in (("latents", latents), ("prompt embeddings", prompt.layers[0].k)):
        if not _is_finite(given):
            raise NonFiniteError(f"The {name} contain NaN or infinity; check what they were made from.")
    raise NonFiniteError(
        f"A result is not finite although weights and inputs are: {model.compute_dtype} overflows here; "
        "compute in float32 or float64."
    )


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())

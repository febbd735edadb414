"""Random tensors that are made again from their seeds, where files of them would be too large to ship.

A recipe is a JSON file with ``weights`` (names of the published layout) and ``inputs`` (of a rollout): lists of groups,
each with a ``seed`` and ``tensors``, which one CPU generator gives in their order as ``[name, shape, law, a, b]``:

* ``normal``: ``b + a * normal``
* ``fan in``: ``normal / sqrt(a)``
* ``identity``: identity matrices of ``size`` rows, one below the other, plus ``a * normal / sqrt(size)``
* ``log uniform``: the logarithm of a number between ``b`` and ``a + b``

``sha256`` of all bytes tells whether this machine makes the same bits. A processor whose normal numbers differ in the
last one is not refused: every check has a tolerance.
"""

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.plain import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeededTensors:
    """What a recipe makes; inputs that are clips are ``[B, F, C, h, w]``, as published."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]


def seeded_tensors(recipe: Path) -> SeededTensors:
    """The tensors of a recipe.

    Raises:
        CheckpointError: a file that is no recipe.
    """
    content = read_json(recipe)
    try:
        made = SeededTensors(_made(content["weights"]), _made(content["inputs"]))
        expected = content["sha256"]
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{recipe} is no recipe of random tensors ({error!r:.200}); fetch it again.") from error
    if fingerprint(made) != expected:
        logger.warning("%s: random numbers of this processor differ in their last bits.", recipe.name)
    return made


def fingerprint(made: SeededTensors) -> str:
    """SHA-256 of all bytes, in their order."""
    digest = hashlib.sha256()
    for tensor in (*made.weights.values(), *made.inputs.values()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _made(groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    made = {}
    for group in groups:
        generator = torch.Generator().manual_seed(group["seed"])
        for name, shape, law, a, b in group["tensors"]:
            made[str(name)] = _sampled(law, shape, a, b, generator)
    return made


def _sampled(law: str, shape: list[int], a: float, b: float, generator: torch.Generator) -> Tensor:
    if law == "log uniform":
        return torch.log(b + a * torch.rand(shape, generator=generator))
    normal = torch.randn(shape, generator=generator)
    if law == "fan in":
        return normal / math.sqrt(a)
    if law == "normal":
        return b + a * normal
    if law == "identity":
        heads, size = shape[0] // shape[1], shape[1]
        return torch.eye(size).repeat(heads, 1).reshape(shape) + a * normal / math.sqrt(size)
    raise ValueError(f"unknown law {law}")

"""Exactly one model or none: how tensors differ from those expected, and a module filled with just them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arl2.errors import CheckpointError, ConfigError
from arl2.files.float8 import widened

_NAMED = 3  # names that an error lists of each kind


@dataclass(frozen=True)
class Misfits:
    """Tensors that are not as expected.

    Attributes:
        missing, extra: names.
        misshapen: by name, the shape found and the one expected, in words.
    """

    missing: list[str]
    extra: list[str]
    misshapen: dict[str, str]

    @classmethod
    def between(cls, expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> "Misfits":
        """Compare shapes by name with tensors by name."""
        return cls(
            [name for name in expected if name not in found],
            [name for name in found if name not in expected],
            {
                name: f"{list(found[name].shape)} instead of {list(shape)}"
                for name, shape in expected.items()
                if name in found and list(found[name].shape) != list(shape)
            },
        )

    def one_by_one(self) -> list[str]:
        """A phrase for each."""
        return [
            *(f"{name} is missing" for name in self.missing),
            *(f"{name} is unexpected" for name in self.extra),
            *(f"{name} is {shapes}" for name, shapes in self.misshapen.items()),
        ]

    def by_kind(self) -> str:
        """Number and first names of each kind that there is."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.extra,
            "of a wrong shape": [f"{name} {shapes}" for name, shapes in self.misshapen.items()],
        }
        return "; ".join(
            f"{len(names)} {kind} (first {', '.join(names[:_NAMED])})" for kind, names in kinds.items() if names
        )


def shapes_of(module: nn.Module) -> dict[str, Sequence[int]]:
    """The shape of every tensor that a module holds, by name."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def require_exact(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor], *, where: str, what: str) -> None:
    """Every tensor there, no other, every shape right; else an error that names the first few of each kind.

    Raises:
        CheckpointError: as said; it calls the file ``where`` and what it is not exactly one of ``what``.
    """
    problems = Misfits.between(expected, found).by_kind()
    if problems:
        raise CheckpointError(f"{where} is not exactly one {what}: tensors {problems}.")


def fill_exactly(module: nn.Module, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, where: str) -> None:
    """``fill`` for a module that may miss no tensor; ``where`` is what errors call the file.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape; the first is named, with their number.
        ConfigError: ``dtype`` is not a floating one.
    """
    unfit = Misfits.between(shapes_of(module), tensors).one_by_one()
    if unfit:
        raise CheckpointError(
            f"{where} is not exactly one {type(module).__name__}: {len(unfit)} tensors do not fit, first: {unfit[0]}."
        )
    fill(module, tensors, dtype=dtype)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    dtype_of: Callable[[str, torch.dtype], torch.dtype] | None = None,
    device: torch.device | str | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Give a module, built on the meta device, these tensors by assignment: what needs no cast is not copied.

    Args:
        module: filled in place.
        tensors: exactly its own, as ``Misfits`` or ``require_exact`` found.
        dtype: to compute in.
        dtype_of: the dtype of a tensor, from its name and ``dtype``; None: all have ``dtype``.
        device: None leaves them where they are.
        scales: factors of tensors in 8 bits, by their names.

    Raises:
        ConfigError: ``dtype`` is not a floating one.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"The compute dtype is {dtype}; use torch.float32, torch.bfloat16 or torch.float16.")
    ready = {
        name: widened(
            tensor if device is None else tensor.to(device),
            (scales or {}).get(name),
            dtype=dtype if dtype_of is None else dtype_of(name, dtype),
        )
        for name, tensor in tensors.items()
    }
    module.load_state_dict(ready, strict=True, assign=True)

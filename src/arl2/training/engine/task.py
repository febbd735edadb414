"""The interface between the training loop and what trains."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.training.engine.processes import Processes

Sharding = Literal["none", "full"]
Compute = Literal["float32", "bfloat16"]
COMPUTE_DTYPES: dict[Compute, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What ``loop.compute`` names: the dtype of frozen weights; what trains stays float32.

The model computes in the dtype of its frozen weights, as it does in use, and keeps its own list of what is float32
whatever that is (norms, modulation, time, ``A_log``, ``dt_bias``, the delta rule's state). Autocast would round
inside the delta rule and the time network, and FSDP's mixed precision would round that list, so neither is used.
"""


@dataclass(frozen=True)
class Batch:
    """Which batch to make. All randomness comes from generators that (seed, step, slot) alone decide.

    Attributes:
        step: optimizer step, from 0.
        slot: which of the step's ``slots`` batches; with several processes each takes some of the slots.
        slots: batches whose gradients are averaged in one step, over all processes.
        generator: fresh, on the CPU; of this batch alone.
        common: fresh, on the CPU; the same in every batch of the step, for choices that all processes must share.
    """

    step: int
    slot: int
    slots: int
    generator: torch.Generator
    common: torch.Generator

    @classmethod
    def keyed(cls, seed: int, step: int, slot: int, slots: int) -> "Batch":
        """With generators made from the key."""
        return cls(step, slot, slots, _generator(f"{seed}/{step}/{slot}"), _generator(f"{seed}/{step}"))

    @property
    def index(self) -> int:
        """Position in a stream of batches: for data that is read in order."""
        return self.step * self.slots + self.slot


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Loss(NamedTuple):
    """A scalar to minimise, how many samples it is the mean of, and scalars to log.

    Logs are averaged between log lines, over the batches of the first process.
    """

    value: Float[Tensor, ""]
    samples: int
    logs: Mapping[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train, by a name that is unique in the task and stays the same from run to run.

    ``hidden`` groups hold nothing but matrices between hidden layers: what Muon is made for.
    """

    parameters: Mapping[str, nn.Parameter]
    learning_rate_scale: float = 1.0
    weight_decay: float = 0.0
    hidden: bool = False


def groups_by_decay(
    parameters: Mapping[str, nn.Parameter],
    *,
    weight_decay: float,
    name: str = "",
    learning_rate_scale: float = 1.0,
) -> list[ParameterGroup]:
    """Two groups of a model that trains whole: matrices in its layers, which decay, and the rest, which does not.

    Args:
        parameters: by name; those of a transformer begin with ``transformer.``.
        weight_decay: of the matrices, but for modulation.
        name: goes before each name, where a task trains several models.
        learning_rate_scale: of both groups.
    """
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for own, parameter in parameters.items():
        in_layer = own.startswith("transformer.layers") and not own.endswith("modulation")
        (matrices if in_layer and parameter.dim() == 2 else rest)[f"{name}{own}"] = parameter
    return [
        ParameterGroup(matrices, learning_rate_scale, weight_decay=weight_decay, hidden=True),
        ParameterGroup(rest, learning_rate_scale),
    ]


@runtime_checkable
class Task(Protocol):
    """One thing to train. The loop owns optimizer, average, checkpoints and logs; the task owns models and data."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """What trains; called once, before the first step."""
        ...

    def loss(self, batch: Batch) -> Loss:
        """The loss of one batch, differentiable. All its randomness is the batch's."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Scores, or none, with the averaged weights in place: every ``evaluate_every`` steps and at the end."""
        ...

    def export(self, folder: Path) -> None:
        """Write what people load, with the averaged weights in place, into ``folder``, which may not exist."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A task with state besides weights, such as running means; checkpoints hold it."""

    def state_tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps, by name; the tensors are filled in place when one is loaded."""
        ...

    def end_step(self, processes: Processes) -> None:
        """After every optimizer step: reduce what was gathered over all processes into the state."""
        ...


@runtime_checkable
class Scales(Protocol):
    """A task that computes in ``loop.compute``, and whose weights can lie in shards on all processes."""

    def shard(self, processes: Processes) -> None:
        """Cut the models into shards, before ``parameter_groups``; every process calls it."""
        ...

    def full_weights(self, *, here: bool) -> AbstractContextManager[None]:
        """Within: full weights, where ``here``; every process enters, and those without ``here`` run nothing."""
        ...


@runtime_checkable
class ShowsSamples(Protocol):
    """A task that can show samples."""

    def contact_sheet(self, path: Path) -> None:
        """Save a PNG, with the averaged weights in place."""
        ...

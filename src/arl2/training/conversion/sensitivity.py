"""Layer sensitivity: how far a rollout moves with one aligned layer in the teacher's place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.plan import converted_layers, plan_of
from arl2.checkpoints.layer_choice import check_layers
from arl2.errors import ConfigError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.pictures import RolloutSpec, latent_distance, roll_out
from arl2.training.conversion.students import (
    StudentSpec,
    Teacher,
    load_aligned,
    make_student,
    take_aligned,
)

Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Sensitivity:
    """How far the rollout moves with each layer alone hybrid.

    Attributes:
        distances: by layer.
        layers: of the model.
    """

    distances: Mapping[int, float]
    layers: int

    @property
    def ranking(self) -> list[int]:
        """Layers, the least sensitive first."""
        return sorted(self.distances, key=lambda layer: (self.distances[layer], layer))

    def plan(self, count: int, keep: Sequence[int] = ()) -> str:
        """The plan that makes the ``count`` least sensitive layers hybrid, those in ``keep`` left out.

        Raises:
            ConfigError: fewer layers are there, or a layer to keep is not.
        """
        check_layers(keep, self.layers)
        allowed = [layer for layer in self.ranking if layer not in set(keep)]
        if not 1 <= count <= len(allowed):
            raise ConfigError(
                f"{count} hybrid layers are not possible: without those to keep, {len(allowed)} were measured."
            )
        return plan_of(allowed[:count], self.layers)

    def plans(self, keep: Sequence[int] = ()) -> dict[int, str]:
        """The plan of every possible number of hybrid layers."""
        most = len([layer for layer in self.distances if layer not in set(keep)])
        return {count: self.plan(count, keep) for count in range(1, most + 1)}

    def to_mapping(self, *, keep: Sequence[int] = (), count: int | None = None) -> dict[str, Any]:
        """Plain values for a file: ``ranking`` (least sensitive first), ``distances``, ``plans``, ``suggested``."""
        return {
            "ranking": self.ranking,
            "distances": {str(layer): self.distances[layer] for layer in sorted(self.distances)},
            "keep": sorted(keep),
            "plans": {str(number): plan for number, plan in self.plans(keep).items()},
            "suggested": None if count is None else self.plan(count, keep),
        }


def measure_sensitivity(
    teacher: Teacher,
    aligned: str,
    text: Float[Tensor, "prompts words text"],
    spec: RolloutSpec,
    *,
    batch: int = 4,
    distance: Distance = latent_distance,
    tell: Callable[[int, float], None] = lambda layer, moved: None,
) -> Sensitivity:
    """Roll out each prompt with the teacher, and with each aligned layer in the teacher's place; same noise.

    Args:
        teacher: the softmax model.
        aligned: folder of a stage-1 export of this teacher; the layers that are hybrid in it are measured.
        text: prompt embeddings.
        spec: of the rollouts; prompt ``i`` has the noise of seed ``spec.seed + i``.
        batch: prompts at once.
        distance: of two rollouts' latents, the student's and the teacher's.
        tell: called with each layer's distance when it is known.

    Raises:
        CheckpointError: no export, or one of another teacher.
        ConfigError: prompts that do not fit, or none.
    """
    if not len(text):
        raise ConfigError("Got no prompts, so there is nothing to roll out; give one or more.")
    model = load_aligned(aligned, teacher).to(teacher.model.patch_embedding.weight.device)
    expected = _rollouts(teacher.model, text, spec, batch)
    distances: dict[int, float] = {}
    for layer in converted_layers(model.config.layer_plan):
        student = make_student(teacher, StudentSpec(_alone(layer, model.config.layer_plan)))
        take_aligned(student, model)
        moved = [
            distance(ours, theirs) for ours, theirs in zip(_rollouts(student, text, spec, batch), expected, strict=True)
        ]
        sizes = [len(one) for one in expected]
        distances[layer] = sum(one * size for one, size in zip(moved, sizes, strict=True)) / sum(sizes)
        tell(layer, distances[layer])
    return Sensitivity(distances, len(model.config.layer_plan))


def _alone(layer: int, plan: str) -> str:
    """The plan in which one layer is what it is, and all others are softmax."""
    return plan_of([layer], len(plan), kind=plan[layer])


@torch.no_grad()
def _rollouts(model: CausalWanTransformer3DModel, text: Tensor, spec: RolloutSpec, batch: int) -> list[Tensor]:
    return [
        roll_out(model, part, replace(spec, seed=spec.seed + number * batch))
        for number, part in enumerate(text.split(batch))
    ]

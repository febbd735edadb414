"""What a step of a conversion will take, told before it is run: operations, and bytes on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from arl2.attention.cost import HeadSize, PassFlops
from arl2.attention.memory import MemoryGeometry
from arl2.attention.plan import converted_layers
from arl2.model.config import layer_specs
from arl2.model.cost import clip_flops
from arl2.training.conversion.trainable import ParameterTable
from arl2.training.engine.task import Compute

MASTER = 4  # bytes: what trains is float32, whatever is computed in
WEIGHT: dict[Compute, int] = {"float32": 4, "bfloat16": 2}

# While a layer that is frozen runs, so many bytes for each of the width are alive: eight tensors, of which half are
# float32 in any case. Of the hidden size there is one.
_PASSING: dict[Compute, float] = {"float32": 32.0, "bfloat16": 24.0}

# A fused kernel's backward pass makes the scores once more: five products for the two of the forward pass.
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class StepEstimate:
    """One batch of one process, with all weights on its device.

    Attributes:
        tokens: of a clip, both halves.
        clips: in a batch.
        compute: the dtype of frozen weights and of most activations.
        teacher_flops, student_flops: of the forward passes.
        backward_flops: of the backward pass: frozen weights need no gradients of their own, and below the first
            converted layer there is none. Where activations are computed again, the student's operations once more.
        weight_bytes: of teacher and student; what is frozen is shared.
        training_bytes: gradients, two moments and the average of what trains.
        activation_bytes: kept for the backward pass, or with checkpointing in its worst moment.
    """

    tokens: int
    clips: int
    compute: Compute
    teacher_flops: int
    student_flops: int
    backward_flops: int
    weight_bytes: int
    training_bytes: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """All operations of the batch."""
        return self.teacher_flops + self.student_flops + self.backward_flops

    @property
    def memory_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.training_bytes + self.activation_bytes

    def text(self) -> str:
        """For a terminal."""
        gigabytes = {"weights": self.weight_bytes, "what trains": self.training_bytes, "kept": self.activation_bytes}
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in gigabytes.items())
        return (
            f"a batch: {self.clips} clips of {self.tokens:,} tokens with both halves\n"
            f"operations: {self.flops / 1e12:.3g} TFLOP (teacher {self.teacher_flops / 1e12:.3g}, "
            f"student {self.student_flops / 1e12:.3g}, backward {self.backward_flops / 1e12:.3g})\n"
            f"memory: about {self.memory_bytes / 1e9:.3g} GB in {self.compute} ({parts})"
        )


def estimate_step(
    teacher: Mapping[str, Any],
    student: Mapping[str, Any],
    table: ParameterTable,
    geometry: MemoryGeometry,
    *,
    frames: int,
    first_block_frames: int | None,
    checkpointing: bool,
    layers_alone: bool,
    compute: Compute = "float32",
    beside: Mapping[str, Any] | None = None,
) -> StepEstimate:
    """Count.

    Args:
        teacher, student: configurations.
        table: what trains.
        geometry: clips in a batch, token grid, frames of a block.
        frames: latent frames of a clip.
        first_block_frames: where the first block differs.
        checkpointing: whether activations are computed again in the backward pass.
        layers_alone: stage 1: converted layers run beside the teacher, not one after the other.
        compute: the dtype of frozen weights and of most activations.
        beside: of the teacher in a second pass, with another window, if there is one.

    Raises:
        GeometryError: frames that are not whole blocks.
    """

    def counted(config: Mapping[str, Any], *, alone: bool = False) -> PassFlops:
        return clip_flops(config, geometry, frames=frames, first_block_frames=first_block_frames, attention_alone=alone)

    own = counted(student, alone=layers_alone)
    plan = str(student["layer_plan"])
    # Below the first converted layer nothing has a gradient.
    above = {**student, "layer_plan": plan[converted_layers(plan)[0] :]}
    differentiated = own if layers_alone else counted(above)
    tokens = 2 * frames * geometry.frame_tokens
    backward = _backward(differentiated, student, table, tokens * geometry.batch, layers_alone=layers_alone)
    # In stage 1 neither queries nor keys take gradients.
    scores = 0.0 if layers_alone else _kept_scores(student, compute, counted, checkpointing=checkpointing)
    per_token = _kept_by_token(student, compute, checkpointing=checkpointing, layers_alone=layers_alone)
    return StepEstimate(
        tokens=tokens,
        clips=geometry.batch,
        compute=compute,
        teacher_flops=counted(teacher).total + (counted(beside).total if beside is not None else 0),
        student_flops=own.total,
        backward_flops=round(backward) + (differentiated.total if checkpointing else 0),
        weight_bytes=WEIGHT[compute] * table.frozen + MASTER * table.trained,
        training_bytes=4 * MASTER * table.trained,
        activation_bytes=round(per_token * tokens * geometry.batch + scores),
    )


def _backward(
    forward: PassFlops, student: Mapping[str, Any], table: ParameterTable, tokens: int, *, layers_alone: bool
) -> float:
    """Operations of the backward pass of what ran forward with gradients."""
    # A trained number takes part in one multiply-add a token, and its gradient is another.
    own_gradients = 2 * tokens * table.trained
    states = 2 * (forward.state_read + forward.state_update)
    if layers_alone:
        # The layers' inputs are the teacher's and take no gradients, so nothing goes through q, k, v or the attention
        # inside blocks; the output projection alone stands between the loss and what trains.
        converted = len(converted_layers(student["layer_plan"]))
        return own_gradients + states + 2 * tokens * converted * HeadSize.of_config(student).width ** 2
    attention = forward.self_attention + forward.cross_attention
    return own_gradients + states + forward.linear + _ATTENTION_BACKWARD * attention


def _kept_by_token(config: Mapping[str, Any], compute: Compute, *, checkpointing: bool, layers_alone: bool) -> float:
    """Bytes alive at the end of the forward pass (or, with checkpointing, in the worst moment), for each token."""
    size, hidden, number = HeadSize.of_config(config), config["ffn_dim"], WEIGHT[compute]
    specs, converted = layer_specs(config), converted_layers(config["layer_plan"])
    passing = _PASSING[compute] * size.width + number * hidden
    if layers_alone:
        # Input and output of every layer are kept; with checkpointing one layer at a time keeps the rest.
        alone = [specs[i].kept_bytes_alone(size, number) for i in converted]
        return passing + len(alone) * 2 * number * size.width + (max(alone) if checkpointing else sum(alone))
    kept = [spec.kept_bytes(size, hidden, number) for spec in specs]
    if checkpointing:
        return passing + len(specs) * number * size.width + max(kept)
    return passing + sum(kept[converted[0] :])


def _kept_scores(
    config: Mapping[str, Any],
    compute: Compute,
    counted: Callable[[Mapping[str, Any]], PassFlops],
    *,
    checkpointing: bool,
) -> float:
    """Bytes of the scores that the layers keep for the backward pass, or with checkpointing the most of one layer."""
    size, plan = HeadSize.of_config(config), str(config["layer_plan"])
    kept = [
        each * counted({**config, "layer_plan": letter}).self_attention if each else 0.0
        for letter, spec in zip(plan, layer_specs(config), strict=True)
        for each in (spec.kept_scores(size, WEIGHT[compute]),)
    ]
    # No gradient reaches the queries and keys of the first converted layer.
    return max(kept, default=0.0) if checkpointing else sum(kept[converted_layers(plan)[0] + 1 :])

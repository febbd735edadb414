"""What a step of a conversion will take, told before it is run: operations, and bytes on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arl2.attention.memory import MemoryGeometry
from arl2.attention.plan import HybridSpec
from arl2.kernels.delta_rule.chunked import CHUNK
from arl2.model.cost import clip_flops
from arl2.training.trainable import ParameterTable

FLOAT = 4  # bytes: what trains, and what it is computed in, is float32

# Numbers that autograd keeps for a token of a layer whose weights are frozen but for the table of spec 4: multiples of
# the width, of the feed-forward's hidden size, and of heads x chunk of the delta rule. Counted with
# torch.autograd.graph.saved_tensors_hooks over layers of many sizes; a test counts again.
_HYBRID_LAYER = (28.5, 1.8, 0.93)
_SOFTMAX_LAYER = (15.0, 1.0, 0.0)
_HYBRID_ATTENTION = (12.2, 0.0, 0.92)
# While a layer that is frozen runs, this many tensors of the width (and of the hidden size) are alive.
_PASSING = 8.0


@dataclass(frozen=True)
class StepEstimate:
    """One batch of one process.

    Attributes:
        tokens: of a clip, both halves.
        clips: in a batch.
        teacher_flops, student_flops: of the forward passes.
        backward_flops: at most: twice the student's (frozen weights need no gradients of their own), and once more
            where activations are computed again.
        weight_bytes: of teacher and student; what is frozen is shared.
        training_bytes: gradients, two moments and the average of what trains.
        activation_bytes: kept for the backward pass.
    """

    tokens: int
    clips: int
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
            f"student {self.student_flops / 1e12:.3g}, backward at most {self.backward_flops / 1e12:.3g})\n"
            f"memory: about {self.memory_bytes / 1e9:.3g} GB in float32 ({parts})"
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
) -> StepEstimate:
    """Count.

    Args:
        teacher, student: configurations.
        table: what trains.
        geometry: clips in a batch, token grid, frames of a block.
        frames: latent frames of a clip.
        first_block_frames: where the first block differs.
        checkpointing: whether activations are computed again in the backward pass.
        layers_alone: stage 1: hybrid layers run beside the teacher, not one after the other.

    Raises:
        GeometryError: frames that are not whole blocks.
    """
    taught = clip_flops(teacher, geometry, frames=frames, first_block_frames=first_block_frames).total
    own = clip_flops(
        student, geometry, frames=frames, first_block_frames=first_block_frames, hybrid_attention_alone=layers_alone
    ).total
    tokens = 2 * frames * geometry.frame_tokens
    numbers = _kept_by_token(student, checkpointing=checkpointing, layers_alone=layers_alone)
    return StepEstimate(
        tokens=tokens,
        clips=geometry.batch,
        teacher_flops=taught,
        student_flops=own,
        backward_flops=(3 if checkpointing else 2) * own,
        weight_bytes=FLOAT * (table.frozen + table.trained),
        training_bytes=4 * FLOAT * table.trained,
        activation_bytes=round(FLOAT * numbers * tokens * geometry.batch),
    )


def _kept_by_token(config: Mapping[str, Any], *, checkpointing: bool, layers_alone: bool) -> float:
    """Numbers alive at the end of the forward pass (or, with checkpointing, in the worst moment), for each token."""
    plan = str(config["layer_plan"])
    width = config["num_attention_heads"] * config["attention_head_dim"]

    def numbers(multiples: tuple[float, float, float]) -> float:
        of_width, of_hidden, of_chunk = multiples
        chunks = config["num_attention_heads"] * CHUNK
        return of_width * width + of_hidden * config["ffn_dim"] + of_chunk * chunks

    hybrid = plan.count(HybridSpec.letter)
    passing = _PASSING * width + config["ffn_dim"]
    if layers_alone:
        # Input and output of every layer are kept; with checkpointing one layer at a time keeps the rest.
        inner = numbers(_HYBRID_ATTENTION)
        return passing + hybrid * 2 * width + (inner if checkpointing else hybrid * inner)
    if checkpointing:
        return passing + len(plan) * width + numbers(_HYBRID_LAYER)
    # Below the first hybrid layer nothing has a gradient.
    above = len(plan) - plan.index(HybridSpec.letter)
    return passing + hybrid * numbers(_HYBRID_LAYER) + (above - hybrid) * numbers(_SOFTMAX_LAYER)

"""Which layer attends how: a frozen, per-layer plan, saved with the model's configuration.

A new kind of attention is one spec here, one module, and one line in :mod:`arl2.attention.factory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from arl2.errors import ConfigError

SinkPositions = Literal["absolute", "relative"]
SINK_POSITIONS: tuple[str, ...] = get_args(SinkPositions)


@dataclass(frozen=True)
class SoftmaxSpec:
    """Softmax over the block and the past, the past kept in a key-value cache.

    Attributes:
        window: latent frames visible, the current block included; None sees the whole past.
        sink: first frames of the stream that the window never evicts.
        sink_positions: where the sinks stand for a block that sees them. ``"absolute"``, as published: at their own
            frames, ever farther away. ``"relative"``: right before the oldest frame of the window, so that no distance
            is longer than the window; the same until the window slides.
    """

    letter: ClassVar[str] = "S"
    window: int | None = None
    sink: int = 0
    sink_positions: SinkPositions = "absolute"

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.window is not None and self.window <= self.sink):
            raise ConfigError(
                f"A window must hold more frames than its sink; got window {self.window} and sink {self.sink}."
            )


@dataclass(frozen=True)
class HybridSpec:
    """Softmax inside the block, one recurrent state for the past.

    Attributes:
        rank: of the low-rank change of the state branch's q, k, v; 0 for none.
        alpha: the change is scaled by ``alpha / rank``.
    """

    letter: ClassVar[str] = "H"
    rank: int = 0
    alpha: float = 0.0


AttentionSpec = SoftmaxSpec | HybridSpec
LETTERS = (SoftmaxSpec.letter, HybridSpec.letter)


def parse_plan(plan: str, num_layers: int) -> str:
    """Check a plan such as ``HHSH``: one letter a layer.

    Raises:
        ConfigError: an unknown letter, or another number of letters than layers.
    """
    unknown = sorted(set(plan) - set(LETTERS))
    if unknown:
        raise ConfigError(
            f"Layer plan {plan!r} has unknown letters {''.join(unknown)}; H is a hybrid layer, S a softmax layer."
        )
    if len(plan) != num_layers:
        raise ConfigError(f"Layer plan {plan!r} names {len(plan)} layers but the model has {num_layers}.")
    return plan


def plan_of(hybrid_layers: Sequence[int], num_layers: int) -> str:
    """The plan whose ``hybrid_layers`` (indices from 0) are hybrid and all others softmax.

    Raises:
        ConfigError: an index outside the model, or named twice.
    """
    if len(set(hybrid_layers)) != len(hybrid_layers) or any(not 0 <= i < num_layers for i in hybrid_layers):
        raise ConfigError(f"Hybrid layers {list(hybrid_layers)} must be different indices from 0 to {num_layers - 1}.")
    return "".join(HybridSpec.letter if i in set(hybrid_layers) else SoftmaxSpec.letter for i in range(num_layers))

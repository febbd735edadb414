"""How the state of a windowed hybrid layer is read: options that all its kinds share, saved with the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arl2.errors import ConfigError
from arl2.files.records import record_from_mapping


@dataclass(frozen=True)
class StateForm:
    """What a state remembers, how its keys are rotated, and how its read is mixed with the window's.

    Attributes:
        sees: what the softmax part sees: ``"window"``, or ``"block"``, the own block alone as in a hybrid layer.
        over: what the state remembers: the whole ``"past"``, or ``"evicted"`` blocks alone, those of which the window
            shows no more.
        rotation: of the state's queries and keys: ``"full"`` as published, ``"spatial"`` (rows and columns) or
            ``"none"``.
        mixing: ``"additive"`` as published, ``"interpolated"`` (from the window's output towards the read; no share,
            since ``openness`` is unbounded), or ``"log-sum-exp"`` (so too, but the past has a softmax mass of its own,
            which the gate learns).
        normalized_read: what is read is brought to one size per head by an RMS norm.
    """

    sees: Literal["window", "block"] = "window"
    over: Literal["past", "evicted"] = "past"
    rotation: Literal["full", "spatial", "none"] = "full"
    mixing: Literal["additive", "interpolated", "log-sum-exp"] = "additive"
    normalized_read: bool = False

    def __post_init__(self) -> None:
        if self.sees == "block" and self.over == "evicted":
            raise ConfigError(
                'state_form.over is "evicted", but layers that see the own block alone have no window to evict from; '
                'give over "past".'
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "StateForm":
        """Of a transformer's configuration, whose ``state_form`` holds what differs from the defaults.

        Raises:
            ConfigError: an unknown option, or a value that it does not take.
        """
        return record_from_mapping(cls, config.get("state_form") or {}, inside="state_form.")

    def blocks_left_out(self, window: int | None, sink: int, block_frames: int) -> int:
        """Of the latest blocks, how many the state that is read does not know: 0 unless it is over evicted blocks.

        Those are the past blocks that the window shows whole.

        Raises:
            ConfigError: no window, so that nothing is ever evicted.
        """
        if self.over == "past":
            return 0
        if window is None:
            raise ConfigError(
                'state_form.over is "evicted", but without a window nothing is ever evicted; give a window, or over '
                '"past".'
            )
        return (window - sink) // block_frames - 1

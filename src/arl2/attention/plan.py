"""Which layer attends how: a per-layer plan of letters, saved with the model's configuration, and the known kinds.

A kind is found by its letter. Its module is imported when the letter is first used, so reading a plan loads no torch.
"""

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from arl2.errors import ConfigError
from arl2.extensions import load_extensions
from arl2.geometry import SINK_POSITIONS as SINK_POSITIONS
from arl2.geometry import SinkPositions as SinkPositions

if TYPE_CHECKING:
    from arl2.attention.kind import AttentionSpec

    KindClass = type[AttentionSpec]
else:
    KindClass = type  # the class itself would bring torch

_BUILT_IN = {
    "S": "arl2.attention.softmax.SoftmaxSpec",
    "H": "arl2.attention.hybrid.HybridSpec",
    "W": "arl2.attention.windowed.WindowedHybridSpec",
    "K": "arl2.attention.kimi_delta.KimiDeltaSpec",
    "G": "arl2.attention.gated_delta_2.GatedDelta2Spec",
    "V": "arl2.attention.video_delta.VideoDeltaSpec",
}
BASELINE = "S"
"""What pretrained models come with; layers of all other kinds are converted from it."""
DEFAULT_KIND = "H"
"""What layers given by number are converted to."""
DEFAULT_PLAN_KIND = "W"
"""What all layers are converted to where none are chosen, by the laboratory (``docs/lab.md``)."""
DEFAULT_PLAN_MIXING = "log-sum-exp"
"""How these mix in what they read, see :mod:`arl2.attention.state_form`."""

_registered: dict[str, KindClass] = {}

Kind = TypeVar("Kind", bound=KindClass)


def register(kind: Kind) -> Kind:
    """Make a kind of attention known by its letter, from any module; also a class decorator.

    Raises:
        ConfigError: a letter that is none or is taken.
    """
    letter = getattr(kind, "letter", None)
    if not isinstance(letter, str) or len(letter) != 1 or not ("A" <= letter <= "Z"):
        raise ConfigError(f"{kind.__name__} has the letter {letter!r}; give it one of A to Z.")
    if letter in letters():
        raise ConfigError(f"The letter {letter} stands for {kind_of(letter).name} layers already; choose another.")
    _registered[letter] = kind
    return kind


def unregister(kind: KindClass) -> None:
    """Forget a kind that :func:`register` made known, so that it can be defined again."""
    del _registered[kind.letter]


def letters() -> tuple[str, ...]:
    """Of all known kinds, the baseline's first."""
    load_extensions()
    return (*_BUILT_IN, *_registered)


def kind_of(letter: str) -> KindClass:
    """The kind that a letter stands for.

    Raises:
        ConfigError: no kind has this letter.
    """
    if letter in _BUILT_IN:
        module, _, name = _BUILT_IN[letter].rpartition(".")
        kind: KindClass = getattr(importlib.import_module(module), name)
        return kind
    if letter not in letters():
        raise ConfigError(
            f"No kind of attention has the letter {letter!r}; known are {_known()}. "
            "Import the module that registers it first."
        )
    return _registered[letter]


def all_kinds() -> tuple[KindClass, ...]:
    """In the order of :func:`letters`."""
    return tuple(kind_of(letter) for letter in letters())


def parse_plan(plan: str, num_layers: int) -> str:
    """Check a plan such as ``HHSH``: one letter a layer.

    Raises:
        ConfigError: an unknown letter, or another number of letters than layers.
    """
    unknown = sorted(set(plan) - set(letters()))
    if unknown:
        raise ConfigError(f"Layer plan {plan!r} has unknown letters {''.join(unknown)}; known are {_known()}.")
    if len(plan) != num_layers:
        raise ConfigError(f"Layer plan {plan!r} names {len(plan)} layers but the model has {num_layers}.")
    return plan


def plan_of(layers: Sequence[int], num_layers: int, *, kind: str = DEFAULT_KIND) -> str:
    """The plan whose ``layers`` (indices from 0) are of a kind, given by its letter, and all others softmax.

    Raises:
        ConfigError: an index outside the model, or named twice.
    """
    if len(set(layers)) != len(layers) or any(not 0 <= i < num_layers for i in layers):
        named = f"{kind_of(kind).name.capitalize()} layers"
        raise ConfigError(f"{named} {list(layers)} must be different indices from 0 to {num_layers - 1}.")
    return "".join(kind if i in set(layers) else BASELINE for i in range(num_layers))


def converted_layers(plan: str) -> list[int]:
    """Indices of the layers that are no longer what pretrained models come with."""
    return [i for i, letter in enumerate(plan) if letter != BASELINE]


def with_converted(plan: str, layers: Iterable[int], *, kind: str = DEFAULT_KIND) -> str:
    """The plan with ``layers`` of a kind; those that are converted already stay as they are.

    Raises:
        ConfigError: an index outside the model.
    """
    added = plan_of(sorted(set(layers)), len(plan), kind=kind)
    return "".join(old if old != BASELINE else new for old, new in zip(plan, added, strict=True))


def plan_summary(plan: str) -> str:
    """How many layers are of which kind, as in ``3 of 4 hybrid (75 %)``."""
    counts = [(kind.name, plan.count(kind.letter)) for kind in all_kinds() if kind.letter in plan]
    shown = [(name, count) for name, count in counts if name != kind_of(BASELINE).name] or counts
    return ", ".join(f"{count} of {len(plan)} {name} ({100 * count / len(plan):.0f} %)" for name, count in shown)


def _known() -> str:
    return ", ".join(f"{kind.letter} ({kind.name})" for kind in all_kinds())

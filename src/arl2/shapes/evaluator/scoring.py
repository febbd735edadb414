"""Scores of clips against their requests, with confidence intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.evaluation.suites.bootstrap import wilson
from arl2.shapes.evaluator.occlusion import Occlusion
from arl2.shapes.evaluator.oracle import Reading, read_all
from arl2.shapes.prompts.request import ATTRIBUTES, SceneRequest

# In the usual world most of an object is visible at least once in this many video frames.
PATIENCE_WITHOUT_WALL, PATIENCE_WITH_WALL = 41, 81
# An object whose best visible share is less may have been occluded throughout.
MOST_SEEN = 0.7


@dataclass(frozen=True)
class Share:
    """A share of clips, with its Wilson 95 % interval."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.hits / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the Wilson 95 % interval; (0, 1) of nothing."""
        return wilson(self.hits, self.of)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON: ``share`` (None of nothing), ``low`` and ``high`` of its interval, ``hits``, ``of``."""
        low, high = self.interval
        return {"share": self.value if self.of else None, "low": low, "high": high, "hits": self.hits, "of": self.of}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Share":
        """What ``to_mapping`` gave, of which only ``hits`` and ``of`` are read."""
        return cls(int(values["hits"]), int(values["of"]))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, {self.hits} of {self.of})"


def score(videos: Float[Tensor, "clips 3 frames height width"], requests: list[SceneRequest]) -> dict[str, Share]:
    """Share of the clips that show each attribute as requested, under the names of `ATTRIBUTES`, and "all" of them.

    Only what a request names is counted. What the evaluator cannot tell counts as wrong, except in a clip so short
    that the object of a true scene could have been occluded throughout.

    Args:
        videos: RGB in [-1, 1], at least `arl2.shapes.evaluator.oracle.MIN_FRAMES` video frames.
        requests: One for each clip.

    Raises:
        Arl2Error: Another number of requests than clips, or clips that cannot be read.
    """
    return score_readings(read_all(videos), requests)


def score_readings(readings: list[Reading], requests: list[SceneRequest]) -> dict[str, Share]:
    """As `score`, from readings."""
    if len(readings) != len(requests):
        raise Arl2Error(f"Got {len(readings)} clips and {len(requests)} requests; give one request for each clip.")
    verdicts = [_judge(reading, request) for reading, request in zip(readings, requests, strict=True)]
    shares = {attribute: _count([verdict.get(attribute) for verdict in verdicts]) for attribute in ATTRIBUTES}
    decided = [[right for right in verdict.values() if right is not None] for verdict in verdicts]
    return shares | {"all": _count([all(verdict) if verdict else None for verdict in decided])}


def score_occlusions(readings: list[Reading], *, at_least: int = 1, patience: int = 48) -> dict[str, Share]:
    """Share of the occlusions behind a wall after which colour, shape, and both are what they were before.

    An occlusion counts if the attribute could be read before. What comes out unreadable is not kept, unless the
    clip ended, or the object left again, before half of it could be seen.

    Args:
        readings: The clips, read.
        at_least: Shortest occlusion that counts, in video frames.
        patience: An object that stays away for more video frames than this, to the end of the clip, is lost
            and was not kept; one that is occluded for less at the end of the clip is not counted.

    Returns:
        "colour", "shape" and "object" (both).
    """
    verdicts = [
        _judge_occlusion(occlusion, patience)
        for reading in readings
        for occlusion in reading.occlusions
        if occlusion.behind_wall and occlusion.frames >= at_least
    ]
    colour, shape = [pair[0] for pair in verdicts], [pair[1] for pair in verdicts]
    both = [None if None in pair else all(pair) for pair in verdicts]
    return {"colour": _count(colour), "shape": _count(shape), "object": _count(both)}


def _judge_occlusion(occlusion: Occlusion, patience: int) -> tuple[bool | None, bool | None]:
    """Whether colour and shape were kept; `None` where that cannot be asked of this occlusion."""
    pairs = (
        (occlusion.colour_before, occlusion.colour_after),
        (occlusion.shape_before, occlusion.shape_after),
    )
    had_its_chance = occlusion.shown_after if occlusion.returned else occlusion.frames > patience
    colour, shape = (
        None if before is None or (after is None and not had_its_chance) else before == after for before, after in pairs
    )
    return colour, shape


def _judge(reading: Reading, request: SceneRequest) -> dict[str, bool | None]:
    """Right or wrong for each attribute that was asked; `None` where the clip could not have shown it."""
    verdict: dict[str, bool | None] = {}
    excused = _could_be_hidden(reading)
    for attribute in ATTRIBUTES:
        asked, said = getattr(request, attribute), getattr(reading, attribute)
        if asked is None:
            continue
        if said is None and excused and attribute != "background":
            verdict[attribute] = None
        else:
            verdict[attribute] = said == asked
    return verdict


def _could_be_hidden(reading: Reading) -> bool:
    walled = bool(reading.wall_span.isfinite().any())
    patience = PATIENCE_WITH_WALL if walled else PATIENCE_WITHOUT_WALL
    return len(reading.visible) < patience and bool(torch.all(reading.visible < MOST_SEEN))


def _count(verdicts: list[bool | None]) -> Share:
    counted = [verdict for verdict in verdicts if verdict is not None]
    return Share(sum(counted), len(counted))

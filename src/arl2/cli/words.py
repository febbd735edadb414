"""Option values that several commands read the same way; no torch."""

import argparse
import math
from typing import Literal


def whole_from_one(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} came; give a whole number from 1")
    return value


def whole_from_zero(text: str) -> int:
    """A whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} came; give a whole number from 0")
    return value


def steps(text: str) -> int | tuple[int, ...]:
    """``4`` is a number of steps, ``1000,500`` a list of them (``1000,`` a list of one)."""
    if "," not in text:
        return whole_from_one(text)
    return tuple(int(word) for word in text.split(",") if word.strip())


def add_candidates(parser: argparse.ArgumentParser) -> None:
    """The option ``--candidates``."""
    parser.add_argument(
        "--candidates",
        type=whole_from_one,
        metavar="N",
        help="first blocks drawn side by side, of which the model's verifier keeps the best (default: the model's own)",
    )


def window(text: str) -> int | Literal["settings"] | None:
    """Latent frames, ``full`` for the whole past, or ``settings`` for the model's own."""
    if text == "settings":
        return "settings"
    return None if text == "full" else whole_from_one(text)


def above_zero(text: str) -> float:
    """A number above 0, not infinity."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} came; give a number above 0")
    return value


def minutes_or_all(text: str) -> float | Literal["all"]:
    """Minutes, or ``all`` of them."""
    return "all" if text == "all" else above_zero(text)

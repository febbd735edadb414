"""Whole numbers from people and files: one rule of what is accepted."""

import operator
from typing import Any

from arl2.errors import ConfigError

MAX_WHOLE = 10**9
"""Of any whole number without a limit of its own: more frames, pixels or steps than a computer can hold."""


def whole(name: str, value: Any, *, least: int | None = None, most: int = MAX_WHOLE) -> int:
    """A whole number as Python's own int, whichever library it came from: a snapshot can store no other.

    Raises:
        ConfigError: something else, or a number out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    accepted = "a whole number" + ("" if least is None else f" from {least}")
    # The general limit is told only to those who meet it.
    accepted += "" if most == MAX_WHOLE and (number is None or number <= most) else f" to {most}"
    if number is None or isinstance(value, bool):
        raise ConfigError(f"Got {name} {value!r:.80}; give {accepted}.")
    if (least is not None and number < least) or number > most:
        # Python refuses to write out a number of thousands of digits.
        shown = number if abs(number) < 10**40 else f"of {number.bit_length():,} bits"
        raise ConfigError(f"Got {name} {shown}; give {accepted}.")
    return number

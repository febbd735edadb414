"""Errors a person meets. Each message says what was got, what is accepted and what to do."""

import difflib
import unicodedata
from collections.abc import Iterable

# Of Unicode: control characters, invisible ones that change the direction of text, and half characters.
_CONTROLS = ("Cc", "Cf", "Cs")


def printable(text: str) -> str:
    """The text with control characters, line breaks aside, written out: ``\\x1b`` for the escape character.

    What comes out of other people's files cannot steer a terminal.
    """
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _CONTROLS and one != "\n" else one
        for one in text
    )


def suggestion(name: object, known: Iterable[str]) -> str:
    """What an error adds after an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Accepted: {', '.join(names)}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or its GPU, had too little memory; that is no fault of what was given."""
    # By name, as torch is perhaps not imported; on a CPU it raises a plain RuntimeError.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


class Arl2Error(ValueError):
    """A mistake in what was given to arl2: a file, a size, a setting. Never an internal fault.

    Its text may quote files, so it is made printable.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class GeometryError(Arl2Error):
    """Frames, pixels or latents whose sizes do not fit the patch, the block or each other."""


class ConfigError(Arl2Error):
    """A setting with an unknown name, a value outside what is accepted, or settings that exclude each other."""


class CheckpointError(Arl2Error):
    """A weights file that cannot be read, is of another layout, or lacks or adds tensors."""


class MemoryMismatchError(Arl2Error):
    """Memory that was never allocated, is full, or belongs to another model, batch or picture size."""


class ProcessLostError(Arl2Error):
    """Another process of the same run ended before its time; what it said itself is the cause."""


class NonFiniteError(Arl2Error):
    """NaN or infinity in weights or inputs, found at the first forward or by ``arl2 inspect``."""


class StreamError(Arl2Error):
    """A stream that cannot do what was asked: it is closed, its decoder is behind, or it does not keep so much."""


class SnapshotError(Arl2Error):
    """A snapshot file that is damaged, or of another model, plan, dtype or a newer version."""

"""Scripts of streams: a YAML file that says which prompt takes effect when.

A list of entries, or a mapping of times to prompts::

    - {at: 0, prompt: a red circle moves right}
    - {at: "0:05", prompt: a blue square bounces, mode: cut}
    - {at: 200 frames, prompt: a green triangle moves up}

Times count from the start of the stream: seconds, ``minutes:seconds``, ``hours:minutes:seconds``, or video frames.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.files.records import record_from_mapping
from arl2.files.regular import read_text
from arl2.files.strict_yaml import parse_yaml
from arl2.geometry import video_frames_of
from arl2.model.settings import ChangeMode
from arl2.serving.file_names import is_text

_LARGEST = 1_000_000  # bytes
_LATEST = 1_000_000_000  # seconds or video frames
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")
_FRAMES = re.compile(r"(\d+)\s*(?:f|frames?|video frames?)")
_TIMES = "seconds such as 5 or 2.5, a clock such as '0:05' or '1:00:00', or video frames such as '80 frames'"


@dataclass(frozen=True)
class Moment:
    """A time in a stream: seconds, or video frames if ``frames`` is not None."""

    seconds: Fraction = Fraction(0)
    frames: int | None = None

    def video_frame(self, fps: int) -> int:
        """The first video frame that is not before it, from 0."""
        return math.ceil(self.seconds * fps) if self.frames is None else self.frames


@dataclass(frozen=True)
class Entry:
    """A prompt and when it takes effect; ``mode`` None leaves the kind of change to the stream."""

    at: Moment
    prompt: str
    mode: ChangeMode | None
    where: str


@dataclass(frozen=True, kw_only=True)
class _Written:
    at: Any
    prompt: str
    mode: ChangeMode | None = None


@dataclass(frozen=True)
class Change:
    """An entry at its block, before whose first pass it takes effect."""

    block: int
    entry: Entry


@dataclass(frozen=True)
class BlockTimes:
    """When the blocks of a stream begin.

    Attributes:
        fps: video frames a second.
        temporal_factor: video frames of a latent frame, but for the first, which is one.
        block_frames: latent frames of a block; ``first_block_frames`` of the first one.
    """

    fps: int
    temporal_factor: int
    block_frames: int
    first_block_frames: int

    def begin(self, block: int) -> int:
        """Number of a block's first video frame."""
        latents = 0 if block == 0 else self.first_block_frames + (block - 1) * self.block_frames
        return video_frames_of(0, latents, self.temporal_factor)

    def block_from(self, video_frame: int) -> int:
        """The first block that begins at this video frame or after it."""
        later = video_frame - self.begin(1)
        if later <= 0:
            return 0 if video_frame <= 0 else 1
        return 1 + -(-later // (self.block_frames * self.temporal_factor))


def read_script(path: Path) -> tuple[Entry, ...]:
    """All entries of a script, in their order.

    Raises:
        ConfigError: no such file, no YAML, no list or mapping, an unknown key or mode, a missing prompt, a time that is
            none or that goes backwards: the message names the file and the entry.
    """
    content = _read_yaml(path)
    if isinstance(content, dict):
        listed = [_of_pair(at, value, f"'{path}', time {_short(at)}") for at, value in content.items()]
    elif isinstance(content, list):
        listed = [(value, f"'{path}', entry {number}") for number, value in enumerate(content, start=1)]
    else:
        raise ConfigError(
            f"'{path}' holds {_kind(content)}; a script is a list of entries with at, prompt and mode, or a mapping of "
            "times to prompts."
        )
    if not listed:
        raise ConfigError(f"'{path}' holds no entries; leave the script out, or write one.")
    entries = tuple(_entry(value, where) for value, where in listed)
    _check_order(entries)
    return entries


def plan_script(entries: Sequence[Entry], times: BlockTimes) -> tuple[Change, ...]:
    """The block of each entry: the first one that begins at its time or after it.

    Raises:
        ConfigError: two entries take effect at one block, or an entry is earlier than the one before it.
    """
    changes: list[Change] = []
    for entry in entries:
        block = times.block_from(entry.at.video_frame(times.fps))
        if changes and block < changes[-1].block:
            raise _backwards(entry, changes[-1].entry)
        if changes and block == changes[-1].block:
            seconds = times.block_frames * times.temporal_factor / times.fps
            raise ConfigError(
                f"{entry.where}: it takes effect at block {block}, as the entry before it does; a block has "
                f"{seconds:.2f} seconds, so move them further apart."
            )
        changes.append(Change(block, entry))
    return tuple(changes)


def parse_moment(value: Any) -> Moment:
    """A time as it stands in a script.

    >>> parse_moment("1:30").seconds, parse_moment("80 frames").frames
    (Fraction(90, 1), 80)

    Raises:
        ConfigError: not a time, negative, or longer than 30 years.
    """
    moment = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= _LATEST:
            moment = Moment(Fraction(str(value)))
    elif isinstance(value, str) and len(value) < 64:
        if found := _CLOCK.fullmatch(value.strip()):
            hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
            moment = Moment(3600 * hours + 60 * minutes + seconds)
        elif found := _FRAMES.fullmatch(value.strip().lower()):
            moment = Moment(frames=int(found[1]))
    if moment is None or moment.seconds > _LATEST or (moment.frames or 0) > _LATEST:
        raise ConfigError(f"{_short(value)} is not a time; give {_TIMES}.")
    return moment


def _entry(value: Any, where: str) -> Entry:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: got {_kind(value)}; an entry is a mapping such as {{at: 5, prompt: a red circle}}."
        )
    entry = record_from_mapping(_Written, value, where=where)
    if not entry.prompt.strip() or "\0" in entry.prompt or not is_text(entry.prompt):
        raise ConfigError(f"{where}: The setting 'prompt' takes text that is not empty; got {_short(entry.prompt)}.")
    try:
        return Entry(parse_moment(entry.at), entry.prompt, entry.mode, where)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _of_pair(at: Any, value: Any, where: str) -> tuple[Any, str]:
    """An item of the mapping of times to prompts, as an entry of the list."""
    if not isinstance(value, dict):
        return {"at": at, "prompt": value}, where
    if "at" in value:
        raise ConfigError(f"{where}: the key 'at' appears twice; the time is before the colon.")
    return {"at": at, **value}, where


def _check_order(entries: Sequence[Entry]) -> None:
    """As far as it can be told without a frame rate."""
    for before, entry in itertools.pairwise(entries):
        if (before.at.frames is None) != (entry.at.frames is None):
            continue
        earlier = (
            entry.at.seconds <= before.at.seconds if entry.at.frames is None else _frames(entry) <= _frames(before)
        )
        if earlier:
            raise _backwards(entry, before)


def _frames(entry: Entry) -> int:
    return entry.at.frames or 0


def _backwards(entry: Entry, before: Entry) -> ConfigError:
    return ConfigError(
        f"{entry.where}: times grow from entry to entry, but {_said(entry.at)} follows {_said(before.at)}; sort the "
        "entries, one for each time."
    )


def _said(at: Moment) -> str:
    return f"{float(at.seconds):g} seconds" if at.frames is None else f"{at.frames} frames"


def _read_yaml(path: Path) -> Any:
    text = read_text(path, limit=_LARGEST)
    try:
        return parse_yaml(text, aliases=False)
    except ValueError as error:
        raise ConfigError(
            f"'{path}' is not YAML ({error}); write entries such as: - {{at: 5, prompt: a red circle}}"
        ) from error


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "a yes or no"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _short(value: Any) -> str:
    """A value for a message; a container, which aliases can make huge, by its kind alone."""
    return repr(value)[:60] if isinstance(value, str | int | float | bool | type(None)) else _kind(value)

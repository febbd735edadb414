"""Names of video files: made from prompts, or given by a person and then checked. Neither leaves its folder."""

import hashlib
import re
import unicodedata

from arl2.errors import ConfigError
from arl2.video.formats import SUFFIXES

_LONGEST_WORDS = 40
# File systems take 255 bytes; the manifest's temporary name needs a few more than the video's.
_LONGEST_NAME = 200


def slug(prompt: str) -> str:
    """Lower-case letters and digits of a prompt with dashes between, at most 40; "prompt" if it has none."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_LONGEST_WORDS].strip("-") or "prompt"


def video_name(number: int, prompt: str, suffix: str = ".mp4") -> str:
    """Number, words, hash of the prompt.

    >>> video_name(7, "A red circle / moves")
    '0007-a-red-circle-moves-b69aaf.mp4'
    """
    return f"{number:04d}-{slug(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}{suffix}"


def check_video_name(name: str) -> str:
    """A name that a person gave, as it is.

    Raises:
        ConfigError: a path, a hidden or unprintable name, one that is too long, or an extension that is not known.
    """
    if not name or any(one in name for one in '/\\:*?"<>|') or not name.isprintable() or name.startswith((".", " ")):
        raise ConfigError(f"The file {name!r} is not a plain name; give one such as 'clip.mp4', without folders.")
    stem, dot, suffix = name.rpartition(".")
    if not stem or f"{dot}{suffix.lower()}" not in SUFFIXES:
        raise ConfigError(f"The file {name!r} must end in {', '.join(SUFFIXES)}.")
    if len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(f"The file name {name[:20]!r}... is longer than {_LONGEST_NAME} bytes; shorten it.")
    return name

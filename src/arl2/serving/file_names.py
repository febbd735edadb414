"""Names of video files: made from prompts, or given by a person and then checked. Neither leaves its folder."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arl2.errors import ConfigError
from arl2.video.formats import STANDARD_OUTPUT, SUFFIXES, check_writable

_LONGEST_WORDS = 40
# File systems take 255 bytes; the manifest's temporary name needs a few more than the video's.
_LONGEST_NAME = 200


def slug(prompt: str) -> str:
    """Lower-case letters and digits of a prompt with dashes between, at most 40; "prompt" if it has none."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_LONGEST_WORDS].strip("-") or "prompt"


def file_name(number: int, prompt: str, suffix: str = ".mp4", *, seed: int | None = None) -> str:
    """A name that no two prompts share and every file system takes: number, words, hash and, if given, the seed.

    >>> file_name(7, "A red circle / moves", seed=3)
    '0007-a-red-circle-moves-b69aaf-seed3.mp4'
    """
    seeded = "" if seed is None else f"-seed{seed}"
    return f"{number:04d}-{slug(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}{seeded}{suffix}"


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


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair, which JSON may hold, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Output:
    """A file (or a folder of PNGs) and the numbers of the prompts it shows."""

    path: Path
    prompts: tuple[int, ...]


@dataclass(frozen=True)
class OutputPlan:
    """All outputs of a command; ``folder`` is set where they share one, which then lists them in a manifest."""

    outputs: tuple[Output, ...]
    folder: Path | None = None

    @property
    def side_by_side(self) -> bool:
        """Whether one file shows several prompts, which must then be generated together."""
        return any(len(output.prompts) > 1 for output in self.outputs)


def plan_outputs(
    prompts: Sequence[str], output: Path | None, *, seed: int | None = None, overwrite: bool = True
) -> OutputPlan:
    """Choose and check the outputs before any work.

    Args:
        prompts: what will be generated.
        output: None names a file in the working folder after each prompt. One prompt: the file, or a folder of PNGs.
            Several: a name without extension is a folder with a file each; a file (``-``, too: raw y4m to standard
            output) shows them side by side.
        seed: of the first prompt; names made from prompts hold each one's own.
        overwrite: whether files that exist may be replaced.

    Raises:
        ConfigError: a prompt that is not text.
        VideoFileError: an unknown extension, or a place that cannot be written to.
    """
    plan = named_outputs(prompts, output, seed=seed)
    for one in plan.outputs:
        check_writable(one.path, overwrite=overwrite)
    return plan


def named_outputs(prompts: Sequence[str], output: Path | None, *, seed: int | None = None) -> OutputPlan:
    """``plan_outputs`` without a look at the disk, for a process that writes nothing; raises ``ConfigError`` as it."""
    for prompt in prompts:
        if not is_text(prompt):
            raise ConfigError(f"The prompt {prompt!r} is not UTF-8; check the encoding of the terminal.")
    seeds = [None if seed is None else seed + number for number in range(len(prompts))]
    names = [file_name(number, prompt, seed=seeds[number]) for number, prompt in enumerate(prompts)]
    if output is None:
        return OutputPlan(tuple(Output(Path(name), (number,)) for number, name in enumerate(names)))
    if len(prompts) == 1 or output.suffix or output == STANDARD_OUTPUT:
        return OutputPlan((Output(output, tuple(range(len(prompts)))),))
    return OutputPlan(tuple(Output(output / name, (number,)) for number, name in enumerate(names)), output)

"""Where videos go: names made from prompts, one file a prompt, a folder of them, or all side by side in one file."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arl2.errors import ConfigError
from arl2.serving.file_names import slug
from arl2.serving.prompts_file import is_text
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError, check_writable

Pictures = UInt8[np.ndarray, "frames height width 3"]

MANIFEST = "manifest.jsonl"
# Video pixels between the videos of one file.
_GAP = 2


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


def plan_outputs(prompts: Sequence[str], output: Path | None) -> OutputPlan:
    """Choose and check the outputs before any work.

    Args:
        prompts: what will be generated.
        output: None names a file in the working folder after each prompt. One prompt: the file, or a folder of PNGs.
            Several: a name without extension is a folder with a file each; a file (``-``, too: raw y4m to standard
            output) shows them side by side.

    Raises:
        VideoFileError: an unknown extension, or a place that cannot be written to.
    """
    for prompt in prompts:
        if not is_text(prompt):
            raise ConfigError(f"The prompt {prompt!r} is not UTF-8; check the encoding of the terminal.")
    names = [file_name(number, prompt) for number, prompt in enumerate(prompts)]
    if output is None:
        plan = OutputPlan(tuple(Output(Path(name), (number,)) for number, name in enumerate(names)))
    elif len(prompts) == 1 or output.suffix or output == STANDARD_OUTPUT:
        plan = OutputPlan((Output(output, tuple(range(len(prompts)))),))
    else:
        plan = OutputPlan(tuple(Output(output / name, (number,)) for number, name in enumerate(names)), output)
    for one in plan.outputs:
        check_writable(one.path)
    return plan


def file_name(number: int, prompt: str, suffix: str = ".mp4") -> str:
    """A name that no two prompts share and every file system takes: number, words, hash."""
    return f"{number:03d}-{slug(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}{suffix}"


def check_file(path: Path, suffix: str) -> None:
    """Refuse, before any work, a file of another kind or in a place that cannot be written to.

    Raises:
        ConfigError: as said.
    """
    if path.suffix.lower() != suffix:
        raise ConfigError(f"'{path}' must end in {suffix}.")
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder, but a file is to be written; choose another name.")
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder '{folder}' cannot be made ({error.strerror}); choose another.") from error
    if not os.access(folder, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise ConfigError(f"'{path}' cannot be written: permission denied; choose another folder.")


def write_manifest(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add entries (each with ``file``) to a folder's manifest; an entry of the same file is replaced.

    Raises:
        VideoFileError: the manifest that is there already cannot be read.
    """
    path = folder / MANIFEST
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        kept = {entry["file"]: entry for entry in map(json.loads, filter(str.strip, lines))}
    except (ValueError, KeyError, TypeError) as error:
        raise VideoFileError(f"'{path}' is not a manifest; move it away or choose another folder.") from error
    kept |= {entry["file"]: dict(entry) for entry in entries}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept.values()), encoding="utf-8")


def side_by_side(videos: Sequence[Pictures]) -> UInt8[np.ndarray, "frames tall wide 3"]:
    """Videos of one size in rows and columns, white between them; a single one as it is."""
    if len(videos) == 1:
        return videos[0]
    columns = math.ceil(math.sqrt(len(videos)))
    rows = math.ceil(len(videos) / columns)
    frames, height, width, _ = videos[0].shape
    shape = (frames, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    whole = np.full(shape, 255, dtype=np.uint8)
    for number, video in enumerate(videos):
        top, left = (height + _GAP) * (number // columns), (width + _GAP) * (number % columns)
        whole[:, top : top + height, left : left + width] = video
    return whole

"""A folder of videos of any system, with their prompts: from a manifest, from the files, or from their names."""

import hashlib
import re
from collections import Counter
from pathlib import Path

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.suites.suite import Subject, VideoFile
from arl2.files.plain import read_json_lines
from arl2.video.formats import VideoFileError
from arl2.video.reading import video_info

MANIFEST = "manifest.jsonl"
_LARGEST = 64_000_000  # bytes of a manifest
_SUFFIXES = (".mp4", ".gif", ".webp", ".mkv", ".mov", ".avi", ".webm", ".y4m")
# VBench's names: the prompt, and the number of the sample.
_NUMBERED = re.compile(r"(?P<prompt>.+)-(?P<number>\d{1,4})")


def folder_subject(folder: Path, label: str) -> Subject:
    """The videos of a folder, in the order of the manifest or of their names.

    Prompts come from ``manifest.jsonl`` (lines with ``file``, ``prompt`` and, where wanted, ``seed``), else from what
    ``arl2 generate`` wrote into each file, else from the file's name (``PROMPT-0.mp4`` as VBench has it). Videos of one
    prompt are its replicates, by their seeds, or in their order.

    Raises:
        ConfigError: no folder, no videos in it, or a manifest that names what is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}'; give one with videos.")
    found = _listed(folder / MANIFEST) if (folder / MANIFEST).is_file() else _named(folder)
    if not found:
        raise ConfigError(
            f"'{folder}' holds no videos; accepted are {', '.join(_SUFFIXES)} and folders of PNGs, with the prompts in "
            f"{MANIFEST} or as names."
        )
    # Of one prompt the seeds give the order, where there are any.
    order = sorted(range(len(found)), key=lambda index: (found[index][2] is None, found[index][2] or 0, index))
    seen: Counter[str] = Counter()
    replicates = {}
    for index in order:
        replicates[index] = seen[found[index][1]]
        seen[found[index][1]] += 1
    videos = tuple(
        VideoFile(path, prompt, replicates[index], _checksum(path)) for index, (path, prompt, _) in enumerate(found)
    )
    return Subject(label, "videos", str(folder), videos=videos)


def _listed(manifest: Path) -> list[tuple[Path, str, int | None]]:
    found = []
    for number, entry in read_json_lines(manifest, limit=_LARGEST, error=ConfigError):
        file, prompt, seed = entry.get("file"), entry.get("prompt"), entry.get("seed")
        # A name from a file must not lead out of its folder.
        if not isinstance(file, str) or not isinstance(prompt, str) or file != Path(file).name or file in ("", ".."):
            raise ConfigError(f"'{manifest}', line {number}: each line needs a file of this folder and a prompt.")
        path = manifest.parent / file
        if "\0" in file or not path.exists():
            raise ConfigError(f"'{manifest}', line {number}: there is no '{file}'; correct the line.")
        found.append((path, prompt, seed if type(seed) is int else None))
    return found


def _named(folder: Path) -> list[tuple[Path, str, int | None]]:
    if any(folder.glob("*.png")):
        return [(folder, *_of_file(folder))]
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES or _is_png_folder(path)]
    return [(path, *_of_file(path)) for path in paths]


def _of_file(path: Path) -> tuple[str, int | None]:
    """Prompt and seed that a file holds or its name says; what cannot be read is found out when it is measured."""
    try:
        settings = video_info(path).settings
    except VideoFileError:
        settings = {}
    prompt, seed = settings.get("prompt"), settings.get("seed")
    if isinstance(prompt, str):
        return prompt, seed if type(seed) is int else None
    name = path.name if path.is_dir() else path.stem
    numbered = _NUMBERED.fullmatch(name)
    return (numbered["prompt"], int(numbered["number"])) if numbered else (name, None)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    try:
        for file in files:
            with file.open("rb") as opened:
                while part := opened.read(1 << 20):
                    digest.update(part)
    except OSError as error:
        raise Arl2Error(f"'{path}' cannot be read ({error.strerror}); check its permissions.") from error
    return digest.hexdigest()


def _is_png_folder(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.png"))

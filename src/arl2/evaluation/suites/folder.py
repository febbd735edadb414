"""A folder of videos of any system, with their prompts: from a manifest, from the files, or from their names."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.suites.endings import NOT_READ, READ
from arl2.evaluation.suites.suite import Subject, VideoFile
from arl2.files.plain import read_json_lines
from arl2.files.regular import require_regular
from arl2.serving.file_names import is_text
from arl2.video.formats import VideoFileError
from arl2.video.reading import video_info

MANIFEST = "manifest.jsonl"
_LARGEST = 64_000_000  # bytes of a manifest
_VIDEOS = (*READ, *NOT_READ)
# VBench's names: the prompt, and the number of the sample.
_NUMBERED = re.compile(r"(?P<prompt>.+)-(?P<number>\d{1,4})")


@dataclass(frozen=True)
class _Found:
    path: Path
    prompt: str
    seed: int | None = None
    sample: int | None = None


def folder_subject(folder: Path, label: str) -> Subject:
    """The videos of a folder, in the order of the manifest or of their names.

    Prompts come from ``manifest.jsonl`` (lines with ``file``, ``prompt`` and, where wanted, ``seed``), else from what
    ``arl2 generate`` wrote into each file, else from the file's name (``PROMPT-0.mp4`` as VBench has it). Videos of one
    prompt are its replicates, by their seeds or numbers, or in their order. PNGs are one video where nothing else is.

    Raises:
        ConfigError: no folder, no videos in it, a name or prompt that is not UTF-8, or a manifest that names what is
            not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}'; give one with videos.")
    listed = (folder / MANIFEST).is_file()
    found = _listed(folder / MANIFEST) if listed else _named(folder)
    if not found:
        raise ConfigError(
            f"'{folder}' holds no videos; accepted are {', '.join(READ)} and folders of PNGs, with the prompts in "
            f"{MANIFEST} or as names."
        )
    for one in found:
        for what, text in (("name", one.path.name), ("prompt", one.prompt)):
            if not is_text(text):
                raise ConfigError(f"The {what} '{_escaped(text)}' in '{folder}' is not UTF-8; rename the file.")
    # Of one prompt the seeds give the order, where there are any.
    order = sorted(range(len(found)), key=lambda index: (*_rank(found[index]), index))
    seen: Counter[str] = Counter()
    replicates = {}
    for index in order:
        replicates[index] = seen[found[index].prompt]
        seen[found[index].prompt] += 1
    videos = tuple(
        VideoFile(one.path, one.prompt, replicates[index], _checksum(one.path), one.seed, one.sample)
        for index, one in enumerate(found)
    )
    left = sorted(_escaped(path.name) for path in _left(folder, {one.path for one in found}, listed=listed))
    notes: tuple[str, ...] = ()
    if left:
        are, what = ("is", "no video") if len(left) == 1 else ("are", "no videos")
        why = f"{are} not in its {MANIFEST}" if listed else f"{are} {what} of an accepted kind"
        notes = (f"{len(left)} of the files and folders in '{label}' {why} and not evaluated, first '{left[0]}'.",)
    return Subject(label, "videos", str(folder), videos=videos, notes=notes)


def _rank(found: _Found) -> tuple[bool, int]:
    number = found.sample if found.seed is None else found.seed
    return number is None, number or 0


def _left(folder: Path, found: Iterable[Path], *, listed: bool) -> list[Path]:
    """What a folder holds that is or has a video, and is not evaluated; without a manifest PNGs, too."""
    if folder in found:  # PNGs, and nothing else is a video
        found = {*found, *folder.glob("*.png")}
    wanted = _VIDEOS if listed else (*_VIDEOS, ".png")
    left = [path for path in folder.iterdir() if path not in found and not path.name.startswith(".")]
    return [path for path in left if path.suffix.lower() in wanted or (path.is_dir() and _holds_videos(path))]


def _holds_videos(folder: Path) -> bool:
    return any(path.suffix.lower() in (*_VIDEOS, ".png") for path in folder.rglob("*"))


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _listed(manifest: Path) -> list[_Found]:
    found = []
    for number, entry in read_json_lines(manifest, limit=_LARGEST, error=ConfigError):
        file, prompt, seed = entry.get("file"), entry.get("prompt"), entry.get("seed")
        # A name from a file must not lead out of its folder.
        if not isinstance(file, str) or not isinstance(prompt, str) or file != Path(file).name or file in ("", ".."):
            raise ConfigError(f"'{manifest}', line {number}: each line needs a file of this folder and a prompt.")
        path = manifest.parent / file
        if "\0" in file or not path.exists():
            raise ConfigError(f"'{manifest}', line {number}: there is no '{file}'; correct the line.")
        found.append(_Found(path, prompt, _seed(seed)))
    return found


def _named(folder: Path) -> list[_Found]:
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READ or _is_png_folder(path)]
    # A picture among videos, such as the filmstrip of ``arl2 compare``, does not make them one.
    return [_of_file(path) for path in paths or ([folder] if _is_png_folder(folder) else [])]


def _of_file(path: Path) -> _Found:
    """Prompt and seed that a file holds or its name says; what cannot be read is found out when it is measured."""
    try:
        settings = video_info(path).settings
    except VideoFileError:
        settings = {}
    prompt = settings.get("prompt")
    if isinstance(prompt, str):
        return _Found(path, prompt, _seed(settings.get("seed")))
    name = path.name if path.is_dir() else path.stem
    numbered = _NUMBERED.fullmatch(name)
    return _Found(path, numbered["prompt"], sample=int(numbered["number"])) if numbered else _Found(path, name)


def _seed(value: object) -> int | None:
    """A seed of noise; None for what is none."""
    return value if type(value) is int and 0 <= value < 2**64 else None


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    try:
        for file in files:
            require_regular(file)
            with file.open("rb") as opened:
                while part := opened.read(1 << 20):
                    digest.update(part)
    except OSError as error:
        raise Arl2Error(f"'{path}' cannot be read ({error.strerror}); check its permissions.") from error
    return digest.hexdigest()


def _is_png_folder(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.png"))

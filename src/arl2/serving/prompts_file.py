"""Prompts that files hold: ``.txt`` with one a line, ``.jsonl`` with settings for each video, folders of images.

Of folders three kinds are read: one with a ``prompts.jsonl``; images with a ``.txt`` of their name; and the published
layout of image-to-video lists, a ``target_crop_info_RATIO.json`` (a list of objects with ``file_name`` and ``caption``)
beside a folder ``RATIO`` of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, ConfigError
from arl2.files.plain import parse_json
from arl2.files.records import record_from_mapping
from arl2.files.regular import read_text
from arl2.serving.file_names import check_video_name, is_text

# No list of prompts is larger; a video passed by mistake is.
_LARGEST = 64_000_000
_LARGEST_SEED = 2**64 - 1
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LIST, _PUBLISHED = "prompts.jsonl", "target_crop_info_*.json"


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video that a file asks for; None leaves the choice to the command.

    Attributes:
        prompt: what it shows.
        seed: of its noise, 0 to 2**64 - 1.
        frames: video frames, conditioning frames included.
        file: plain name of the output.
        image: that it starts from.
        video: video that it continues.
        where: file and line, for messages.
    """

    prompt: str
    seed: int | None = None
    frames: int | None = None
    file: str | None = None
    image: Path | None = None
    video: Path | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class _Line:
    prompt: str
    seed: int | None = None
    frames: int | None = None
    file: str | None = None
    image: str | None = None
    video: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Captioned:
    file_name: str
    caption: str


def read_prompts_file(path: Path) -> tuple[VideoRequest, ...]:
    """All videos that a file asks for, in its order.

    In a ``.txt`` blank lines and lines beginning with # are skipped. Every line of a ``.jsonl`` that is not blank is
    an object with ``prompt`` and, where wanted, ``seed``, ``frames``, ``file``, ``image`` and ``video``; paths are
    relative to the file's folder.

    Raises:
        ConfigError: no such file, another kind, not UTF-8, empty, or a line that is not what it should be: the message
            names the file and the line.
    """
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise ConfigError(f"Prompts come from a .txt or .jsonl file, but got '{path}'.")
    lines = [(line, f"'{path}', line {number}") for number, line in enumerate(_lines(path), start=1) if line.strip()]
    if path.suffix.lower() == ".txt":
        requests = tuple(
            VideoRequest(prompt=line.strip(), where=where) for line, where in lines if not line.startswith("#")
        )
    else:
        requests = tuple(_request(line, where, path.parent) for line, where in lines)
    if not requests:
        raise ConfigError(f"'{path}' holds no prompts.")
    return requests


def read_image_folder(folder: Path) -> tuple[VideoRequest, ...]:
    """All images of a folder with their prompts, in the order of the list or of their names.

    Raises:
        ConfigError: no such folder, none of the three kinds, an image without a prompt, or a list that is not what it
            should be.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}'; give one with images and prompts.")
    if (folder / _LIST).is_file():
        return read_prompts_file(folder / _LIST)
    lists = sorted(folder.glob(_PUBLISHED))
    if len(lists) > 1:
        raise ConfigError(f"'{folder}' has {len(lists)} files {_PUBLISHED}; keep one.")
    found = tuple(_published(lists[0]) if lists else _pairs(folder))
    if not found:
        raise ConfigError(
            f"'{folder}' holds no images with prompts: give images with a .txt of the same name each, or {_LIST}."
        )
    return found


def _lines(path: Path) -> list[str]:
    # Not splitlines: a prompt may hold other separators of Unicode.
    return read_text(path, limit=_LARGEST).split("\n")


def _request(text: str, where: str, folder: Path) -> VideoRequest:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{where}: this is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: a line is an object such as {{"prompt": "a red circle"}}.')
    line = record_from_mapping(_Line, values, where=where)
    try:
        return _checked(line, where, folder)
    except Arl2Error as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(line: _Line, where: str, folder: Path) -> VideoRequest:
    if not line.prompt.strip():
        raise ConfigError("The prompt is empty; say what the video shows.")
    for name in ("prompt", "file", "image", "video"):
        value: Any = vars(line)[name] or ""
        if "\0" in value or not is_text(value):
            raise ConfigError(f"The setting '{name}' takes text; got {value[:40]!r}.")
    if line.seed is not None and not 0 <= line.seed <= _LARGEST_SEED:
        raise ConfigError(f"The setting 'seed' takes a whole number from 0 to {_LARGEST_SEED}; got {line.seed}.")
    if line.frames is not None and line.frames < 1:
        raise ConfigError(f"The setting 'frames' takes a whole number from 1; got {line.frames}.")
    if line.image is not None and line.video is not None:
        raise ConfigError("A video starts from an image or continues a video, not both; take one out.")
    return VideoRequest(
        prompt=line.prompt,
        seed=line.seed,
        frames=line.frames,
        file=None if line.file is None else check_video_name(line.file),
        image=None if line.image is None else folder / line.image,
        video=None if line.video is None else folder / line.video,
        where=where,
    )


def _pairs(folder: Path) -> Iterator[VideoRequest]:
    for image in sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES):
        text = image.with_suffix(".txt")
        if not text.is_file():
            raise ConfigError(f"'{image}' has no prompt; write it into '{text.name}' beside it.")
        prompt = " ".join(line.strip() for line in _lines(text) if line.strip())
        if not prompt:
            raise ConfigError(f"'{text}' is empty; write the prompt of '{image.name}' into it.")
        yield VideoRequest(prompt=prompt, image=image, where=f"'{text}'")


def _published(path: Path) -> Iterator[VideoRequest]:
    images = path.parent / path.stem.rpartition("_")[2]
    try:
        entries = parse_json(read_text(path, limit=_LARGEST))
    except Arl2Error:
        raise
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON ({error}).") from error
    if not isinstance(entries, list):
        raise ConfigError(f"'{path}' must hold a list of objects with file_name and caption.")
    for number, entry in enumerate(entries):
        where = f"'{path}', entry {number}"
        # The published lists say more, which is not needed here.
        named = {key: entry[key] for key in ("file_name", "caption") if key in entry} if isinstance(entry, dict) else {}
        found = record_from_mapping(_Captioned, named, where=where)
        name = found.file_name
        # A name from a file must not lead out of its folder.
        if name != Path(name).name or "\\" in name or name in ("", "..") or "\0" in name:
            raise ConfigError(f"{where}: the file_name {name!r} must be a plain name in '{images}'.")
        if not found.caption.strip():
            raise ConfigError(f"{where}: the caption is empty; say what the video shows.")
        yield VideoRequest(prompt=found.caption, image=images / name, where=where)

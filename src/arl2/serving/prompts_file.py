"""Files of prompts: ``.txt`` with one a line, or ``.jsonl`` with a line of settings for each video."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, ConfigError
from arl2.serving.file_names import check_video_name

# No list of prompts is larger; a video passed by mistake is.
_LARGEST = 64_000_000
_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video that a file asks for; None leaves the choice to the command.

    Attributes:
        prompt: what it shows.
        seed: of its noise, 0 to 2**64 - 1.
        frames: video frames, known ones included.
        file: plain name of the output.
        image: picture that it starts from.
        video: video that it goes on with.
        where: file and line, for messages.
    """

    prompt: str
    seed: int | None = None
    frames: int | None = None
    file: str | None = None
    image: Path | None = None
    video: Path | None = None
    where: str = field(default="", compare=False)


KEYS = tuple(one.name for one in fields(VideoRequest) if one.name != "where")


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
        raise ConfigError(f"Prompts come from a .txt or .jsonl file, but '{path}' came.")
    lines = enumerate(read_lines(path), start=1)
    if path.suffix.lower() == ".txt":
        requests = tuple(
            VideoRequest(prompt=line.strip(), where=f"'{path}', line {number}")
            for number, line in lines
            if line.strip() and not line.startswith("#")
        )
    else:
        requests = tuple(
            _request(line, f"'{path}', line {number}", path.parent) for number, line in lines if line.strip()
        )
    if not requests:
        raise ConfigError(f"'{path}' holds no prompts.")
    return requests


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: no such file, one that is no text, or one that is too large.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"'{path}' has more than {_LARGEST // 1_000_000} MB; is it a list of prompts?")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror}).") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"'{path}', line {line}: this is not UTF-8 text; save the file as UTF-8.") from error
    # Not splitlines: a prompt may hold other separators of Unicode.
    return iter(text.replace("\r\n", "\n").split("\n"))


def _request(line: str, where: str, folder: Path) -> VideoRequest:
    try:
        values = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: this is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: a line is an object such as {{"prompt": "a red circle"}}.')
    try:
        return _checked(values, where, folder)
    except Arl2Error as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(values: dict[str, Any], where: str, folder: Path) -> VideoRequest:
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"accepted are {', '.join(KEYS)}."
            raise ConfigError(f"unknown key '{key}'; {hint}")
    prompt = _text(values, "prompt")
    if prompt is None or not prompt.strip():
        raise ConfigError("the key 'prompt' is missing or empty.")
    file, image, video = (_text(values, key) for key in ("file", "image", "video"))
    if image is not None and video is not None:
        raise ConfigError("a video starts from an image or goes on with a video, not both.")
    return VideoRequest(
        prompt=prompt,
        seed=_whole(values, "seed", 0, _LARGEST_SEED),
        frames=_whole(values, "frames", 1, None),
        file=None if file is None else check_video_name(file),
        image=None if image is None else folder / image,
        video=None if video is None else folder / video,
        where=where,
    )


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair, which JSON may hold, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and (not isinstance(value, str) or "\0" in value or not is_text(value)):
        raise ConfigError(f"the key '{key}' takes text, but {json.dumps(value)[:40]} came.")
    return value


def _whole(values: dict[str, Any], key: str, least: int, most: int | None) -> int | None:
    value = values.get(key)
    # True and false are ints in Python, and numbers in no prompt file.
    if value is not None and (type(value) is not int or value < least or (most is not None and value > most)):
        limits = f"from {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"the key '{key}' takes a whole number {limits}, but {json.dumps(value)[:40]} came.")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the key '{name}' comes twice")
    return dict(pairs)

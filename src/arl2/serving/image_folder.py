"""Images with prompts as folders hold them: the lists that image-to-video models are run on.

Three kinds are read: a ``prompts.jsonl`` as ``arl2.serving.prompts_file`` reads it; pictures with a ``.txt`` of their
name; and the published layout, a ``target_crop_info_RATIO.json`` (a list of objects with ``file_name`` and
``caption``) beside a folder ``RATIO`` of pictures.
"""

import json
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.serving.prompts_file import VideoRequest, read_lines, read_prompts_file

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LIST, _PUBLISHED = "prompts.jsonl", "target_crop_info_*.json"


def read_image_folder(folder: Path) -> tuple[VideoRequest, ...]:
    """All pictures of a folder with their prompts, in the order of the list or of their names.

    Raises:
        ConfigError: no such folder, none of the three kinds, a picture without a prompt, or a list that is not what it
            should be.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}'; give one with images and prompts.")
    if (folder / _LIST).is_file():
        return read_prompts_file(folder / _LIST)
    lists = sorted(folder.glob(_PUBLISHED))
    if len(lists) > 1:
        raise ConfigError(f"'{folder}' has {len(lists)} files {_PUBLISHED}; keep one.")
    found = _published(lists[0]) if lists else _pairs(folder)
    if not found:
        raise ConfigError(
            f"'{folder}' holds no images with prompts: give pictures with a .txt of the same name each, or {_LIST}."
        )
    return found


def _pairs(folder: Path) -> tuple[VideoRequest, ...]:
    requests = []
    for picture in sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES):
        text = picture.with_suffix(".txt")
        if not text.is_file():
            raise ConfigError(f"'{picture}' has no prompt; write it into '{text.name}' beside it.")
        prompt = " ".join(line.strip() for line in read_lines(text) if line.strip())
        if not prompt:
            raise ConfigError(f"'{text}' is empty; write the prompt of '{picture.name}' into it.")
        requests.append(VideoRequest(prompt=prompt, image=picture, where=f"'{text}'"))
    return tuple(requests)


def _published(path: Path) -> tuple[VideoRequest, ...]:
    pictures = path.parent / path.stem.rpartition("_")[2]
    try:
        entries = json.loads("\n".join(read_lines(path)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not JSON ({error}).") from error
    if not isinstance(entries, list):
        raise ConfigError(f"'{path}' must hold a list of objects with file_name and caption.")
    return tuple(_entry(entry, f"'{path}', entry {number}", pictures) for number, entry in enumerate(entries))


def _entry(entry: Any, where: str, pictures: Path) -> VideoRequest:
    name, caption = (entry.get("file_name"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
        raise ConfigError(f"{where}: it needs a file_name and a caption, both text.")
    # A name from a file must not lead out of its folder.
    if name != Path(name).name or "\\" in name or name in ("", "..") or "\0" in name:
        raise ConfigError(f"{where}: the file_name {name!r} must be a plain name in '{pictures}'.")
    return VideoRequest(prompt=caption, image=pictures / name, where=where)

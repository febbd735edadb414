"""Every output of every command is checked by one rule before the model loads: exit code 2, one sentence."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from arl2.cli.main import main
from arl2.errors import ConfigError
from arl2.files.places import check_apart
from arl2.model.transformer import CausalWanTransformer3DModel

TEACHER = ("sensitivity", "shapes-teacher", "--aligned", "nowhere")
FILES = {
    "generate -o": ("generate", "red", "-o", "{}.mp4"),
    "generate --sheet": ("generate", "red", "-o", "fine.mp4", "--sheet", "{}.png"),
    "generate --latents": ("generate", "red", "-o", "fine.mp4", "--latents", "{}.safetensors"),
    "generate, side by side": ("generate", "red", "blue", "-o", "{}.gif"),
    "stream -o": ("stream", "red", "--frames", "9", "-o", "{}.mp4"),
    "stream, raw": ("stream", "red", "--frames", "9", "-o", "{}.y4m"),
    "stream --snapshot": ("stream", "red", "--frames", "9", "-o", "fine.mp4", "--snapshot", "{}.arl2"),
    "export .pt": ("export", "shapes-75", "-o", "{}.pt"),
    "export .safetensors": ("export", "shapes-75", "-o", "{}.safetensors"),
    "sensitivity -o": (*TEACHER, "-o", "{}.json"),
    "sensitivity --plot": (*TEACHER, "-o", "fine.json", "--plot", "{}.png"),
    "shapes sample --sheet": ("shapes", "sample", "--sheet", "{}.png"),
}
NEW_FOLDERS = {
    "generate, PNGs": ("generate", "red", "-o", "{}"),
    "stream, PNGs": ("stream", "red", "--frames", "9", "-o", "{}"),
    "stream, HLS": ("stream", "red", "--frames", "9", "-o", "{}.hls"),
    "export": ("export", "shapes-75", "-o", "{}"),
    "convert": ("convert", "shapes-teacher", "--fraction", "0.75", "-o", "{}"),
}
FOLDERS = {
    **NEW_FOLDERS,
    "generate, several": ("generate", "red", "blue", "-o", "{}"),
    "generate --prompts-file": ("generate", "--prompts-file", "prompts.txt", "-o", "{}"),
    "rollouts": ("rollouts", "shapes", "--shapes-prompts", "2", "-o", "{}"),
    "train": ("train", "codec", "{}", "loop.steps=1"),
    "shapes render": ("shapes", "render", "red", "-o", "{}"),
}
ALL = {**FILES, **FOLDERS}


@pytest.fixture(autouse=True)
def _no_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded before the output was checked")

    monkeypatch.setattr(CausalWanTransformer3DModel, "__init__", load)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("red\n")


def said(words: tuple[str, ...], place: str, capsys: pytest.CaptureFixture[str]) -> str:
    before = set(Path().rglob("*"))
    assert main([word.format(place) for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "Traceback" not in err
    new = {one for one in Path().rglob("*") if one not in before}
    assert not any(one.is_file() for one in new)
    return err


def name_of(words: tuple[str, ...], place: str) -> Path:
    return Path(next(word for word in words if "{}" in word).format(place))


@pytest.mark.parametrize("words", FILES.values(), ids=FILES)
def test_a_file_that_is_there(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    name_of(words, "a").write_text("mine")
    assert "is there already; choose another name, or add --overwrite" in said(words, "a", capsys)
    assert name_of(words, "a").read_text() == "mine"


@pytest.mark.parametrize("words", FILES.values(), ids=FILES)
def test_a_folder_in_the_place_of_a_file(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    name_of(words, "a").mkdir()
    assert "is a folder" in said(words, "a", capsys)


@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_a_file_in_the_place_of_a_folder(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    name_of(words, "a").write_text("mine")
    told = said(words, "a", capsys)
    assert "is a file, but a folder" in told or "cannot be made (Not a directory)" in told or "File exists" in told


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("words", NEW_FOLDERS.values(), ids=NEW_FOLDERS)
def test_a_folder_with_things_of_others(
    words: tuple[str, ...], overwrite: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = name_of(words, "a")
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    assert "is not empty" in said((*words, *overwrite), "a", capsys)
    assert (folder / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
def test_a_parent_that_cannot_be_made(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    assert "cannot be made" in said(words, "file/a", capsys)


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
def test_a_name_that_no_system_takes(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "File name too long" in said(words, "a" * 300, capsys)


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
def test_an_address(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("rtmp://host/live", "http://host/a"):
        assert "is an address, but outputs are files" in said(words, place, capsys)


@pytest.mark.parametrize("words", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_place_without_room_or_right(
    words: tuple[str, ...],
    code: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(code, reason)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert f"cannot be written: {reason}" in said(words, "a", capsys)


INSIDE = {
    "a sheet among PNGs": ("generate", "red", "-o", "q", "--sheet", "q/00003.png"),
    "latents among PNGs": ("generate", "red", "-o", "q", "--latents", "q/sub/a.safetensors"),
    "by another way": ("generate", "red", "-o", "q", "--sheet", "x/../q/sheet.png"),
    "of a folder among several": ("generate", "red", "blue", "-o", "q.gif", "--latents", "q.gif/a.safetensors"),
    "a snapshot among PNGs": ("stream", "red", "--frames", "9", "-o", "q", "--snapshot", "q/s.arl2"),
    "a snapshot among segments": ("stream", "red", "--frames", "9", "-o", "q.hls", "--snapshot", "q.hls/k.arl2"),
    "a video in a sheet": ("generate", "red", "-o", "q.png/a.mp4", "--sheet", "q.png"),
    "a video in a snapshot": ("stream", "red", "-o", "q.arl2/a.hls", "--snapshot", "q.arl2", "--frames", "9"),
}


@pytest.mark.parametrize("words", INSIDE.values(), ids=list(INSIDE))
def test_no_output_lies_in_another_one(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("x").mkdir()
    assert main([*words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "would lie in 'q" in err
    assert err.count("\n") == 1
    assert [one.name for one in Path().rglob("*") if one.is_file()] == ["prompts.txt"]


def test_no_output_is_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--plot and --output are both 'x/../a.png'; give one of them another name"):
        check_apart({"--plot": Path("x/../a.png"), "--output": Path("a.png"), "--sheet": None})
    check_apart({"--plot": Path("a.png"), "--output": Path("a")})

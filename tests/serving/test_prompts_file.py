"""Lists of prompts: what is read, and that a mistake names its file, its line and what to do."""

import json
from pathlib import Path

import pytest
from PIL import Image

from arl2.errors import ConfigError
from arl2.serving.file_names import check_video_name, file_name, slug
from arl2.serving.prompts_file import VideoRequest, read_image_folder, read_prompts_file


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red circle\r\n\r\n# a comment\n  ein grüner Kreis\u2028hier \n".encode())
    found = read_prompts_file(path)
    assert [one.prompt for one in found] == ["a red circle", "ein grüner Kreis\u2028hier"]
    assert [one.where for one in found] == [f"'{path}', line 1", f"'{path}', line 4"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    whole = {"prompt": "red", "seed": 2**64 - 1, "frames": 9, "file": "a.mp4", "image": "pictures/a.png"}
    path.write_text(json.dumps(whole) + '\n\n{"prompt": "blue", "video": "/v.mp4", "seed": null}\n')
    one, other = read_prompts_file(path)
    assert one == VideoRequest(
        prompt="red", seed=2**64 - 1, frames=9, file="a.mp4", image=tmp_path / "pictures" / "a.png"
    )
    assert other == VideoRequest(prompt="blue", video=Path("/v.mp4"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "red", "sede": 1}', r"Unknown setting 'sede'\. Did you mean 'seed'"),
        ('{"prompt": "red", "zzz": 1}', r"Unknown setting 'zzz'\. Accepted: prompt, seed, frames, file, image, video"),
        ('{"prompt": "red", "prompt": "blue"}', "the key 'prompt' appears twice"),
        ('{"seed": 1}', "'prompt' has no default"),
        ('{"prompt": " "}', "The prompt is empty"),
        ('{"prompt": 3}', "'prompt' takes text; got 3"),
        ('{"prompt": "red", "seed": true}', "'seed' takes a whole number; got true"),
        ('{"prompt": "red", "seed": -1}', "'seed' takes a whole number from 0"),
        ('{"prompt": "red", "seed": 18446744073709551616}', "'seed' takes a whole number from 0"),
        ('{"prompt": "red", "frames": 0}', "'frames' takes a whole number from 1"),
        ('{"prompt": "red", "frames": 1.5}', "'frames' takes a whole number; got 1.5"),
        ('{"prompt": "red", "image": "a.png", "video": "b.mp4"}', "not both"),
        ('{"prompt": "red", "image": "a\\u0000"}', "'image' takes text"),
        ('{"prompt": "red", "file": "../a.mp4"}', "not a plain name"),
        ('{"prompt": "red", "file": "a.avi"}', r"must end in \.mp4, \.gif, \.webp, \.y4m"),
        ('"red"', "a line is an object"),
        ("{red}", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(ConfigError, match=f"prompts.jsonl', line 2: .*{said}"):
        read_prompts_file(path)


def test_files_that_are_no_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes(b"red\nein gr\xfcner Kreis\n")
    with pytest.raises(ConfigError, match=r"latin.txt', line 2: this is not UTF-8"):
        read_prompts_file(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(ConfigError, match="holds no prompts"):
        read_prompts_file(tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_prompts_file(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match=r"from a \.txt or \.jsonl file"):
        read_prompts_file(tmp_path / "prompts.csv")
    monkeypatch.setattr("arl2.serving.prompts_file._LARGEST", 5)
    with pytest.raises(ConfigError, match="is too large"):
        read_prompts_file(tmp_path / "latin.txt")


def test_names_from_prompts_stay_in_their_folder() -> None:
    for prompt in ("../../etc/passwd", "/abs", "a\\b", "\0", "..", "日本語", "é" * 500, "CON", "a\nb"):
        name = file_name(3, prompt)
        assert Path(name).name == name == check_video_name(name)
        assert name.startswith("0003-")
    assert (
        file_name(7, "A red circle / moves") == f"0007-a-red-circle-moves-{file_name(7, 'A red circle / moves')[-10:]}"
    )
    assert slug("Grüne Bälle") == "grune-balle"
    assert slug("日本語") == "prompt"
    assert file_name(0, "a b") != file_name(0, "a  b")


@pytest.mark.parametrize("name", ["", "a/b.mp4", "..", ".mp4", ".a.mp4", "a\\b.mp4", "c:a.mp4", "a\n.mp4", "a.mp4/"])
def test_given_names_are_plain(name: str) -> None:
    with pytest.raises(ConfigError, match=r"not a plain name|must end in"):
        check_video_name(name)


def test_given_names_are_short() -> None:
    assert check_video_name("clip.Y4M") == "clip.Y4M"
    with pytest.raises(ConfigError, match="longer than 200 bytes"):
        check_video_name("a" * 197 + ".mp4")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_pictures_with_texts(tmp_path: Path) -> None:
    for name in ("b", "a"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"\ufeffprompt {name}\nsecond line\n")
    (tmp_path / "notes.md").write_text("no picture")
    found = read_image_folder(tmp_path)
    assert [one.prompt for one in found] == ["prompt a second line", "prompt b second line"]
    assert [one.image for one in found] == [tmp_path / "a.png", tmp_path / "b.png"]
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"is empty; write the prompt of 'a.png'"):
        read_image_folder(tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ConfigError, match=r"has no prompt; write it into 'a.txt'"):
        read_image_folder(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "red", "image": "b.png"}\n')
    assert [one.image for one in read_image_folder(tmp_path)] == [tmp_path / "b.png"]


def test_the_published_layout(tmp_path: Path) -> None:
    picture(tmp_path / "26-15" / "one.jpg")
    path = tmp_path / "target_crop_info_26-15.json"
    path.write_text(json.dumps([{"file_name": "one.jpg", "caption": "a red circle", "type": "x"}]))
    (found,) = read_image_folder(tmp_path)
    assert (found.prompt, found.image) == ("a red circle", tmp_path / "26-15" / "one.jpg")
    for entries, said in (
        ([{"file_name": "../one.jpg", "caption": "a"}], "must be a plain name"),
        ([{"file_name": "..", "caption": "a"}], "must be a plain name"),
        ([{"caption": "a"}], "entry 0: The setting 'file_name' has no default"),
        ({"file_name": "a"}, "must hold a list"),
        ([], "holds no images with prompts"),
    ):
        path.write_text(json.dumps(entries))
        with pytest.raises(ConfigError, match=said):
            read_image_folder(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_image_folder(tmp_path)
    (tmp_path / "target_crop_info_1-1.json").write_text("[]")
    with pytest.raises(ConfigError, match="2 files"):
        read_image_folder(tmp_path)
    with pytest.raises(ConfigError, match="There is no folder"):
        read_image_folder(tmp_path / "no")

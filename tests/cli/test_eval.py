"""``arl2 eval`` and ``arl2 compare``: what they write, what they refuse, and that both refuse it before any work."""

import json
from pathlib import Path

import numpy as np
import pytest

from arl2.cli.main import main
from arl2.video.reading import read_video, video_info
from arl2.video.writers import open_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of 24 x 32 pixels and 10 frames; the same with one pixel changed in frame 4; a smaller, shorter one."""
    folder = tmp_path_factory.mktemp("videos")
    frames = np.random.default_rng(0).integers(0, 256, (10, 24, 32, 3), np.uint8)
    changed = frames.copy()
    changed[4, 0, 0] ^= 255
    made = {"a": frames, "b": changed, "c": frames[:6, :12, :12]}
    for name, content in made.items():
        with open_video(folder / name) as writer:  # PNGs: to the bit
            writer.write(content)
    return [folder / name for name in made]


def test_compare_shows_all_and_says_how_far_they_are(videos: list[Path], tmp_path: Path, capsys) -> None:
    output = tmp_path / "all.y4m"
    words = ["compare", *map(str, videos), str(videos[0]), "--output", str(output)]
    assert main([*words, "--json"]) == 0
    changed, smaller, same = json.loads(capsys.readouterr().out)
    assert (changed["first_different"], changed["frames"]) == (4, 10)
    assert changed["mean"] > 0
    assert smaller["why_not"] == "12 x 12 pixels, and the first has 32 x 24"
    assert (same["mean"], same["psnr"], same["first_different"]) == (0, None, None)
    shown = read_video(output)
    assert len(shown) == 10
    assert shown.shape[1] == 24 + 22  # the labels above
    assert (tmp_path / "all.png").is_file()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "none: equal" in capsys.readouterr().out


def test_compare_shows_the_frames_themselves(videos: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "both"
    assert (
        main(["compare", str(videos[0]), str(videos[2]), "--output", f"{output}.gif", "--strip", f"{output}.png"]) == 0
    )
    assert video_info(f"{output}.gif").height == 24 + 22
    assert main(["compare", str(videos[0]), str(videos[1]), "--output", f"{output}.mp4"]) == 2  # the strip is there


def test_compare_takes_a_video_that_lies_in_the_folder_of_another(videos: list[Path], tmp_path: Path, capsys) -> None:
    inside = videos[0] / "copy.gif"
    with open_video(inside) as writer:
        writer.write(read_video(videos[2]))
    try:
        assert main(["compare", str(videos[0]), str(inside), "--output", str(tmp_path / "out.y4m")]) == 0
        assert main(["compare", str(videos[0]), str(inside), "--output", str(videos[0] / "out.y4m")]) == 2
    finally:
        inside.unlink()
    assert "would lie in" in capsys.readouterr().err


def test_compare_refuses_what_it_cannot_show(videos: list[Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    for words, sentence in (
        ([str(videos[0])], "Give two videos or more"),
        ([str(videos[0]), "no.mp4"], "There is no 'no.mp4'"),
        ([str(videos[0]), str(tmp_path / "damaged.mp4")], "damaged.mp4"),
        ([str(videos[0]), str(videos[1]), "--output", str(tmp_path / "folder")], "has no extension"),
        ([*map(str, videos[:2]), "--strip", str(tmp_path / "a.jpg")], ".png"),
    ):
        given = words if "--output" in words else [*words, "--output", str(tmp_path / "out.mp4")]
        assert main(["compare", *given]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "Traceback" not in said


def test_eval_of_a_model_and_the_truth(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    words = ["eval", "shapes:window=9:steps=2", "true-renders", "--suite", "shapes", "--count", "2", "--frames", "21"]
    words += ["--candidates", "1", "--output", str(output)]
    assert main(words) == 0
    assert "report.html" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0  # all is there: nothing is generated again
    printed = json.loads(capsys.readouterr().out)
    assert printed["means"]["true-renders"]["all"]["mean"] == 1
    assert printed["subjects"][0]["sampling"] == {"steps": 2, "first_block_candidates": 1, "window": 9}
    assert len(printed["subjects"][0]["model_hash"]) == 64
    assert main([*words, "--seeds", "2"]) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_eval_says_what_is_left_out_and_why(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "[b]"
    for number in range(2):
        with open_video(folder / f"a cat-{number}.gif") as writer:
            writer.write(np.full((3, 16, 16, 3), 90, np.uint8))
    (folder / "a [red]dog-0.mp4").write_bytes(b"no video at all")
    assert main(["eval", str(folder), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    first, second, *_ = said[said.index("Left out of the means:") :].splitlines()[1:]
    assert first.startswith("  [b]: the whole video, 1 video, such as 'a [red]dog': the file cannot be read: ")
    assert second.startswith("  [b]: ")
    assert "2 videos, such as 'a cat': " in second
    assert "nothing moves" in said


def test_eval_says_why_nothing_could_be_evaluated(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a cat-0.mp4").write_bytes(b"no video at all")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "mine", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "Nothing of 'mine' could be evaluated: the file cannot be read: 'a cat-0.mp4'" in said
    assert str(tmp_path) not in said  # results are the same wherever the videos lie


def test_eval_refuses_before_the_work(tmp_path: Path, videos: list[Path], capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    plain, folder = str(tmp_path / "prompts.txt"), str(videos[0].parent)
    Path(plain).write_text("a red circle moves up\nxyzzy\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a cat", "frames": 3}\n')
    (tmp_path / "x.avi").write_bytes(b"")
    for words, sentence in (
        ([], "Give models or folders of videos"),
        (["shapes", "--suite", "shape"], "Did you mean 'shapes'?"),
        (["shape-75"], "There is no model 'shape-75'"),
        ([str(tmp_path / "x.avi")], "is one video; give its folder"),
        ([plain], "give a folder of videos, a name that 'arl2 models' lists, or a model's folder"),
        (["shapes:windw=9"], "there is no setting 'windw'"),
        (["shapes:window=x"], "'shapes:window=x', window: got 'x'"),
        (["shapes", "shapes"], "given twice"),
        (["shapes", "--suite", "teacher"], "give --teacher MODEL"),
        (["shapes", "--suite", "teacher", "--teacher", "no-model"], "There is no model 'no-model'"),
        (["shapes", "--suite", "memory", "--hidden", "x"], "Option '--hidden'"),
        (["shapes", "--suite", "memory", "--hidden", "2", "--count", "1"], "too short"),
        ([str(videos[0].parent), "--suite", "memory"], "evaluates models"),
        ([str(tmp_path / "empty")], "holds no videos"),
        (["shapes", "--prompts-file", "no.txt"], "There is no 'no.txt'"),
        (["shapes", "--prompts-file", str(tmp_path / "prompts.jsonl")], "'frames' means nothing for eval"),
        (["shapes", "--output", str(tmp_path / "taken")], "is not empty"),
        (["shapes", "--suite", "memory", "--frames", "21"], "leave --frames out"),
        (["shapes", "--suite", "memory", "--prompts-file", plain], "leave --prompts-file out"),
        (["shapes", "--hidden", "24"], "--hidden goes with the suite 'memory'"),
        (["shapes", "--prompts-file", plain, "--count", "3"], "--count goes without prompts of yours"),
        (["shapes", folder, "--count", "3"], "leave --count out"),
        (["shapes", folder, "--seeds", "2"], "leave --seeds out"),
        ([folder, "--steps", "2"], "--steps goes with models"),
        ([folder, "--window", "9"], "--window goes with models"),
        ([folder, "--candidates", "2"], "--candidates goes with models"),
        ([folder, "--frames", "21"], "--frames goes with models"),
        (["shapes", "--suite", "shapes", "--frames", "3"], "Got 3 video frames"),
        (["shapes", "--suite", "shapes", "--prompts-file", plain], "line 2"),
    ):
        given = words if "--output" in words else [*words, "--output", str(tmp_path / "out")]
        assert main(["eval", *given]) == 2, words
        said = capsys.readouterr().err
        assert sentence in said, said
        assert "Traceback" not in said
    assert not (tmp_path / "out" / "results.json").exists()

"""``generate`` under torchrun: several ranks, one video, one voice."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.cli.together import PROMPT

from arl2.cli.main import main
from arl2.serving.manifest import read_manifest
from arl2.video.reading import count_clip_frames
from forked import program
from pipeline.stand_in import SETTINGS, stand_in_folder
from support import relative


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of all commands, and what the two ranks said."""
    place = tmp_path_factory.mktemp("together")
    stand_in_folder(place / "model")
    (place / "prompts.txt").write_text("a red circle moves right\na blue square bounces\n")
    done = program("tests.cli.together", str(place))
    assert done.returncode == 0, done.stderr
    return place, done.stdout + done.stderr


def test_two_ranks_generate_what_one_does(made) -> None:
    place, said = made
    words = [PROMPT, "--frames", "33", "--model", str(place / "model"), "--device", "cpu", "--threads", "1"]
    assert main(["generate", *words, "-o", str(place / "one.mp4"), "--latents", str(place / "one.safetensors")]) == 0
    one, two = (load_file(place / f"{name}.safetensors")["000"] for name in ("one", "two"))
    assert relative(two, one) < 1e-5
    assert count_clip_frames(place / "two.mp4", fps=SETTINGS.fps) == 33
    assert (place / "two.png").is_file()
    assert said.count(f"wrote {place / 'two.mp4'}") == 1


def test_a_list_is_made_once(made) -> None:
    place, said = made
    videos = sorted((place / "videos").glob("*.mp4"))
    assert [read_manifest(video).frames for video in videos] == [21, 21]
    assert said.count("2 videos: 0 finished before, 2 to make") == 1
    assert said.count("2 videos: 2 finished before, 0 to make") == 1


def test_ctrl_c_on_one_rank_stops_all_after_the_same_block(made) -> None:
    place, said = made
    assert count_clip_frames(place / "stopped.mp4", fps=SETTINGS.fps) == 21  # two blocks of three latent frames
    assert said.count("arl2 generate: interrupted") == 1


def test_every_rank_ends_as_the_first_one(made) -> None:
    """Without --overwrite the last command is refused: by the first rank in a sentence, and the other one ends, too."""
    place, said = made
    codes = [(place / f"codes-{rank}").read_text() for rank in (0, 1)]
    assert codes == ["0 0 0 130 2"] * 2
    assert said.count("add --overwrite") == 1
    assert said.count("Another rank of this command has ended; its own message says why.") == 1


def test_what_torchrun_did_not_start_or_cannot_share_is_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert main(["generate", PROMPT]) == 2
    assert "WORLD_SIZE is 2, but RANK is not set; start the command with torchrun." in capsys.readouterr().err
    assert main(["stream", PROMPT, "--frames", "9"]) == 2
    assert "arl2 stream runs in one process. Several GPUs generate together with" in capsys.readouterr().err

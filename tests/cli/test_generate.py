"""``arl2 generate``: files with their settings, the same bytes for the same seed, and mistakes in one sentence."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from arl2.cli.main import main
from arl2.pipeline.pipeline import ARL2Pipeline, VideoBlock
from arl2.serving import engine, generation
from arl2.serving.file_names import file_name
from arl2.video.pixels import side_by_side
from arl2.video.reading import read_video, video_info

PROMPT = "a red circle moves right on navy"


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a"])
def test_every_format_is_the_streams_video(generate, name: str, capsys) -> None:
    assert generate(PROMPT, "--frames", "20", "--output", name, "--scale", "2", "--seed", "7") == 0
    video = read_video(Path(name))
    assert video.shape == (20, 128, 128, 3)
    out = capsys.readouterr().out
    assert "20 video frames do not fill whole blocks: 21 are generated" in out
    assert f"wrote {name}\n" in out
    assert "peak memory" in out
    if name in ("a.mp4", "a"):
        settings = video_info(Path(name)).settings
        assert settings["prompt"] == PROMPT
        assert (settings["seed"], settings["num_frames"], settings["window"], settings["fps"]) == (7, 20, 9, 16)
        assert settings["levels"] == [1000, 750]


def test_default_name_and_scale(generate, tmp_path: Path) -> None:
    prompt = "A RED ball / ../ moves right!"
    assert generate(prompt, "--frames", "9", "--quiet") == 0
    (written,) = tmp_path.iterdir()
    assert written.name == file_name(0, prompt, seed=0)
    assert written.name.startswith("0000-a-red-ball-moves-right-")
    assert written.name.endswith("-seed0.mp4")
    assert video_info(written).width == 256


def test_same_seed_same_bytes(generate, tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = ("--latents", f"{name}.safetensors", "--output", f"{name}.gif", "--quiet")
        assert generate(PROMPT, "a blue square bounces", *words) == 0
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "two.gif").read_bytes()
    words = ("--latents", "two.safetensors", "--output", "two.gif", "--seed", "1", "--quiet", "--overwrite")
    assert generate(PROMPT, *words) == 0
    assert one.read_bytes() != two.read_bytes()


def test_several_prompts_side_by_side(generate, tmp_path: Path) -> None:
    prompts = (PROMPT, "a blue square bounces", "a green triangle falls")
    assert generate(*prompts, "--output", "all.mp4", "--frames", "9", "--scale", "1", "--quiet") == 0
    info = video_info(tmp_path / "all.mp4")
    assert (info.width, info.height) == (130, 130)
    assert info.settings["prompts"] == list(prompts)


def test_several_prompts_into_a_folder(generate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(generation, "PROMPTS_AT_ONCE", 2)
    prompts = [PROMPT, "a blue square bounces", "a green triangle falls"]
    words = ("--output", "out", "--frames", "9", "--sheet", "sheet.png", "--latents", "l.safetensors", "--quiet")
    assert generate(*prompts, *words) == 0
    entries = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [entry["prompt"] for entry in entries] == prompts
    assert [entry["seed"] for entry in entries] == [0, 1, 2]
    for entry in entries:
        assert len(read_video(tmp_path / "out" / entry["file"])) == 9
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * 64
    # A second run into the folder adds to it: names hold the seed.
    assert generate("a cyan disc rises", PROMPT, *words, "--seed", "7", "--overwrite") == 0
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 5


def test_ctrl_c_leaves_a_whole_file(generate, tmp_path: Path, monkeypatch, capsys) -> None:
    pixels = VideoBlock.pixels

    def interrupting(block: VideoBlock, sample: int = 0) -> np.ndarray:
        if block.index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return pixels(block, sample)

    monkeypatch.setattr(VideoBlock, "pixels", interrupting)
    words = ("--output", "cut.mp4", "--latents", "cut.safetensors", "--sheet", "cut.png", "--frames", "81")
    assert generate(PROMPT, *words) == 130
    assert len(read_video(tmp_path / "cut.mp4")) == 21
    assert (tmp_path / "cut.safetensors").is_file()
    assert (tmp_path / "cut.png").is_file()
    assert "interrupted; what was done until then is whole in cut.mp4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("",), "The prompt is empty"),
        (("hello world",), "which this model cannot draw"),
        (("red", "--output", "a.avi"), "accepted are .mp4, .gif, .webp"),
        (("red", "--output", "file/a.mp4"), "cannot be made"),
        (("red", "--output", "folder.mp4"), "is a folder"),
        (("red", "--sheet", "a.jpg"), "must end in .png"),
        (("red", "--latents", "file/a.safetensors"), "cannot be made"),
        (("red", "--latents", "folder.safetensors"), "is a folder"),
        (("red", "--window", "2"), "use at least 3"),
        (("red", "--steps", "500,1000"), "whole numbers that fall from at most 1000"),
        (("red", "--device", "cuda:77"), "cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(generate, tmp_path: Path, capsys, words, said: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    assert generate(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("arl2 generate: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [("--frames", "0"), ("--seed", "-1"), ("--steps", "x"), ("--window", "wide")])
def test_numbers_that_are_none(generate, words: tuple[str, str], capsys) -> None:
    assert generate("red", *words) == 2
    error = capsys.readouterr().err
    assert f"Option '{words[0]}': got '{words[1]}'; give a" in error
    assert error.endswith("see 'arl2 generate --help'\n")
    assert error.count("\n") == 2


def test_nothing_is_written_over_unless_asked(generate, tmp_path: Path, capsys) -> None:
    places = ("--output", "a.gif", "--sheet", "a.png", "--latents", "a.safetensors")
    assert generate("red", "--frames", "9", *places, "--quiet") == 0
    for number in (0, 2, 4):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert generate("red", "--frames", "9", "--seed", "1", *places[number : number + 2]) == 2
        assert f"'{places[number + 1]}' is there already; choose another name, or add --overwrite" in (
            capsys.readouterr().err
        )
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    before = (tmp_path / "a.gif").read_bytes()
    assert generate("red", "--frames", "9", "--seed", "1", *places, "--quiet", "--overwrite") == 0
    assert (tmp_path / "a.gif").read_bytes() != before
    # Another seed is another file.
    for seed in ("0", "1"):
        assert generate("red", "--frames", "9", "--seed", seed, "--quiet") == 0
    assert len(list(tmp_path.glob("0000-red-*-seed*.mp4"))) == 2


def test_every_sampling_option_reaches_the_rollout(generate, capsys, tmp_path) -> None:
    words = ("red", "--frames", "33", "--window", "4", "-o", "a.gif", "--latents", "a.safetensors", "--overwrite")
    seen = []
    for more in ((), ("--sink", "1"), ("--context-noise", "300")):
        assert generate(*words, *more, "--quiet") == 0
        seen.append((tmp_path / "a.safetensors").read_bytes())
    assert len(set(seen)) == 3
    assert generate("red", "--guidance-scale", "3") == 2
    assert "Got guidance_scale 3 for a few-step student" in capsys.readouterr().err


def test_files_that_are_not_there_are_named_by_their_option(generate, capsys) -> None:
    for option in ("--weights", "--base", "--config"):
        assert generate("red", option, "nofile") == 2
        assert f"There is no 'nofile' ({option})" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "red", "--model", "nothing"]) == 2
    assert "There is no model 'nothing'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(generate, monkeypatch, capsys) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "side_by_side", full)
    assert generate("red", "--output", "a.gif") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_threads_do_not_change_latents(model: str) -> None:
    import torch

    pipe = ARL2Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    latents = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        latents.append(pipe(PROMPT, output_type="latent").frames)
    # Equal bits where they were measured, but no library promises them. Latents reach 5.
    torch.testing.assert_close(*latents, rtol=0, atol=1e-4)


def test_candidates_of_the_first_block(generate, tmp_path: Path, monkeypatch, capsys) -> None:
    """The embedded model, which has a verifier: the file says how many were drawn; a model without one says so."""
    monkeypatch.chdir(tmp_path)
    words = ["generate", PROMPT, "--frames", "9", "--steps", "2", "--seed", "4", "--quiet"]
    made = {}
    for count in ("1", "3"):
        (output, latents) = (f"{count}.mp4", f"{count}.safetensors")
        assert main([*words, "--candidates", count, "--output", output, "--latents", latents]) == 0
        assert video_info(Path(output)).settings["first_block_candidates"] == int(count)
        made[count] = load_file(latents)["000"]
    pipe = ARL2Pipeline.from_pretrained("shapes")
    text = pipe.text.encode([PROMPT]).detach()
    once, chosen = (float(pipe.verifier(made[count][None], text)) for count in ("1", "3"))
    assert chosen >= once
    assert generate(PROMPT, "--candidates", "2", "--output", "x.mp4") == 2
    assert "this model has none; leave first_block_candidates at 1" in capsys.readouterr().err


def test_side_by_side_fills_rows() -> None:
    videos = [np.full((2, 4, 4, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    whole = side_by_side(videos)
    assert whole.shape == (2, 10, 10, 3)
    assert whole[0, 0, 9, 0] == 20
    assert whole[0, 9, 0, 0] == 30
    assert whole[0, 9, 9, 0] == whole[0, 5, 0, 0] == 255
    assert side_by_side(videos[:1]) is videos[0]

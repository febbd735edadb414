"""``arl2 shapes``: captions, true videos, and scores that are ~100 % on the truth."""

import json
from pathlib import Path

import pytest
import torch

from arl2.cli.main import main
from arl2.shapes.evaluation.occlusion import moving_occlusions, standing_occlusions
from arl2.shapes.evaluation.score import score_codec, score_truth
from arl2.shapes.prompts.captions import captions_of
from arl2.shapes.prompts.parser import scenes_of_prompts
from arl2.shapes.prompts.unknown import UnknownWordsWarning
from arl2.shapes.world.renderer import visible_share
from arl2.video.reading import read_video, video_info
from arl2.video.writers import open_video


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "videos"
    assert main(["shapes", "render", "--count", "6", "--output", str(folder), "--scale", "2"]) == 0
    return folder


def test_sample_prints_captions_of_the_seed(capsys, tmp_path: Path) -> None:
    assert main(["shapes", "sample", "--count", "3", "--sheet", str(tmp_path / "sheet.png")]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].strip().startswith("0  a ")
    assert (tmp_path / "sheet.png").is_file()
    assert main(["shapes", "sample", "--count", "2", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines() != first[:2]
    assert main(["shapes", "sample", "--sheet", str(tmp_path / "sheet.jpg")]) == 2
    assert main(["shapes", "sample", "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "sheet.png' is there already" in capsys.readouterr().err


def test_true_videos_score_as_asked(truth: Path, capsys) -> None:
    assert main(["shapes", "score", str(truth), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["videos"] == 6
    for name, share in report["scores"]["as asked"].items():
        assert share["share"] == 1.0, name
    assert report["figures"]["flicker"] < 0.01
    assert main(["shapes", "score", str(truth)]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out
    assert "100.0%" in out


def test_prompts_come_from_metadata_too_and_a_wrong_one_scores_nothing(truth: Path, tmp_path: Path, capsys) -> None:
    video = next(truth.glob("0000-*.mp4"))
    (tmp_path / video.name).write_bytes(video.read_bytes())
    assert main(["shapes", "score", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["as asked"]["all"]["share"] == 1.0
    lie = {"file": video.name, "prompt": "a cyan triangle falls on white behind a wall"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(lie) + "\n")
    assert main(["shapes", "score", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["as asked"]["all"]["share"] == 0.0


def test_captions_are_drawn_as_they_say(tmp_path: Path) -> None:
    prompts = ["a yellow box drops on beige behind a wall", "a triangle bounces on white"]
    assert captions_of(scenes_of_prompts(prompts, seed=0)) == [
        "a yellow square moves down behind a wall on beige",
        "a triangle bounces on white",
    ]
    words = ["--output", str(tmp_path / "out"), "--frames", "20", "--format", "gif", "--scale", "1"]
    assert main(["shapes", "render", *prompts, *words]) == 0
    for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines():
        path = tmp_path / "out" / json.loads(line)["file"]
        assert read_video(path).shape[1:] == (64, 64, 3)
        assert video_info(path).fps == pytest.approx(16, rel=0.02)


def test_a_word_that_is_not_understood_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", str(tmp_path / "out"), "--frames", "2", "--format", "gif", "--scale", "1"]
    with pytest.warns(UnknownWordsWarning, match=r"'purpl' \(did you mean 'purple'\?\)"):
        assert main(["shapes", "render", "a purpl circle", *words]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score",), "either a folder of videos or --model"),
        (("score", "nothing"), "There is no folder"),
        (("score", "."), "holds no videos"),
        (("score", ".", "--model", "shapes"), "exclude each other"),
        (("score", "--model", "nothing"), "There is no model"),
        (("render", "-o", "out"), "Give either captions"),
        (("render", "red", "--count", "1", "-o", "out"), "Give either captions"),
        (("render", "hello", "-o", "out"), "asks for 'hello'"),
        (("render", "a purple elephant plays tennis", "-o", "out"), "asks for 'elephant'"),
        (("render", "a red cirlce", "-o", "out"), "Did you mean 'circle'?"),
        (("render", "a red blue ball", "-o", "out"), "more than one colour"),
        (("sample", "--count", "100000000000000000000"), "give a whole number from 1 to 1000000000"),
        (("sample", "--seed", "18446744073709551616"), "give a whole number from 0 to 18446744073709551615"),
        (("score", "--model", "shapes", "--window", "100000000000000000000000"), "1 to 1000000000, or 'full'"),
    ],
)
def test_bad_input(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shapes", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    # Of an option that cannot be, a second line names the help.
    assert error.count("\n") == 1 + error.count("\nsee 'arl2 shapes ")


def test_folders_that_cannot_be_scored(truth: Path, tmp_path: Path, capsys) -> None:
    def refused(*words: str) -> str:
        assert main(["shapes", "score", str(tmp_path), *words]) == 2
        return capsys.readouterr().err

    (tmp_path / "manifest.jsonl").write_text('{"file": "a.mp4"}\n')
    assert "line 1: each line needs a file of this folder and a prompt" in refused()
    (tmp_path / "manifest.jsonl").write_text('{"file": "../a.mp4", "prompt": "red"}\n')
    assert "line 1: each line needs a file of this folder and a prompt" in refused()
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.mp4", "prompt": "red"}\n')
    assert "line 1: there is no 'a.mp4'" in refused()
    (tmp_path / "manifest.jsonl").unlink()
    with open_video(tmp_path / "short.mp4", settings={"prompt": "red"}) as writer:
        writer.write(read_video(next(truth.glob("*.mp4")))[:3])
    assert "short.mp4': Scoring needs at least 5" in refused()
    with open_video(tmp_path / "short.mp4") as writer:
        writer.write(read_video(next(truth.glob("*.mp4")))[:9])
    assert "short.mp4', whose prompt is 'short':" in refused()
    # What only a model can be asked for.
    assert "--count goes with a model" in refused("--count", "3")
    assert "--seed goes with models" in refused("--seed", "3")
    assert "--steps goes with models" in refused("--steps", "4")


def test_what_is_not_scored_is_told(truth: Path, tmp_path: Path, capsys) -> None:
    names = sorted(path.name for path in truth.glob("*.mp4"))
    listed = (truth / "manifest.jsonl").read_text().splitlines()[:2]
    for name in names:
        (tmp_path / name).write_bytes((truth / name).read_bytes())
    (tmp_path / "manifest.jsonl").write_text("\n".join(listed) + "\n")
    assert main(["shapes", "score", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 of the files and folders in" in out
    assert f"first '{names[2]}'" in out
    assert main(["shapes", "score", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["videos"] == 2
    assert len(report["notes"]) == 1


def test_scoring_a_model(model: str, capsys) -> None:
    words = ["--prompts", "2", "--frames", "93", "--occlusion", "4", "--json", "--steps", "1"]
    assert main(["shapes", "score", "--model", model, *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"]["true renders"]["all"]["share"] == 1.0
    assert report["scores"]["kept through 4 hidden, true renders"]["colour"]["share"] == 1.0
    assert report["scores"]["last second, true renders"]["colour"]["share"] == 1.0
    # Noise shows no object, and a lost object is no excuse.
    assert report["scores"]["as asked"]["all"]["share"] == 0.0
    assert report["scores"]["last second"]["colour"]["share"] == 0.0
    assert report["figures"]["codec PSNR, dB"] < 20
    assert report["levels"] == [1000]
    # "--prompts 2" is what it was called; it is hidden now.
    assert report["prompts"] == 2


def test_the_truth_scores_as_asked_whatever_its_length() -> None:
    result = score_truth(prompts=4, seed=3, num_frames=150)
    assert result.shares["all"].value == 1.0
    assert result.last_second is not None
    assert result.last_second.value == 1.0
    short = score_truth(prompts=1, seed=3, num_frames=20)
    assert short.last_second is None


def test_the_codec_figure_of_a_perfect_codec() -> None:
    class Perfect:
        """Latents are pixels."""

        latent_channels, spatial_factor, temporal_factor = 3, 1, 1

        def new_cache(self, side: str = "decoder") -> None:
            raise NotImplementedError

        def encode(self, video: torch.Tensor, cache: object = None) -> torch.Tensor:
            return video

        def decode(self, latents: torch.Tensor, cache: object = None) -> torch.Tensor:
            return latents + 0.02

        def frames_of(self, first_frame: int, latent_frames: int) -> int:
            return latent_frames

    figures = score_codec(Perfect(), clips=2, num_frames=9)
    assert figures.psnr > 39
    assert figures.difference_psnr > figures.psnr


@pytest.mark.parametrize(("find", "hidden"), [(standing_occlusions, 6), (moving_occlusions, 24)])
def test_objects_are_hidden_at_the_cut_and_seen_before_and_after(find, hidden: int) -> None:
    scenes = find(6, seed=0, hidden=hidden, known=33, num_frames=89)
    assert bool(scenes.hides_colour.all())
    seen = visible_share(scenes, 89)
    assert (seen[:, 31:35] < 0.02).all()
    assert ((seen < 0.02).sum(1) >= hidden).all()
    assert (seen[:, :31].amax(1) > 0.95).all()
    assert (seen[:, 35:].amax(1) > 0.95).all()


def test_occlusions_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        standing_occlusions(1, seed=0, hidden=3, known=33, num_frames=81)
    with pytest.raises(ValueError, match="or for moving walls"):
        standing_occlusions(1, seed=0, hidden=40, known=33, num_frames=81)
    with pytest.raises(ValueError, match="give at least"):
        moving_occlusions(1, seed=0, hidden=60, known=33, num_frames=81)

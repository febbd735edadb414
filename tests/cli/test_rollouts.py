"""``arl2 rollouts``: prompts, scenes and videos become shards; what is whole is kept through every kind of stop."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.together import start_twice

from arl2.cli.main import main
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.training.clips.dataset import ClipSet
from pipeline.stand_in import stand_in_pipeline

PROMPTS = "a red circle moves right on navy\n# a remark\n\na green square bounces\nthe thing on beige\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    stand_in_pipeline("SS").save_pretrained(folder / "teacher")
    stand_in_pipeline("HS").save_pretrained(folder / "hybrid")
    (folder / "prompts.txt").write_text(PROMPTS)
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "longer.jsonl").write_text('{"prompt": "a red circle", "frames": 99}\n')
    (folder / "seeded.jsonl").write_text('{"prompt": "a red circle", "seed": 77}\n{"prompt": "a blue square"}\n')
    return folder


def rollouts(models: Path, *words: str, model: str = "teacher") -> int:
    return main(["rollouts", "--model", str(models / model), "--threads", "1", *words])


def same_clips(one: Path, other: Path) -> bool:
    first, second = ClipSet.open(one), ClipSet.open(other)
    pairs = [(first[i], second[i]) for i in range(len(first))]
    return len(first) == len(second) and all(
        torch.equal(a.latents, b.latents) and torch.equal(a.text, b.text) and (a.caption, a.seed) == (b.caption, b.seed)
        for a, b in pairs
    )


def test_prompts_of_a_file_become_clips_once(models, tmp_path, capsys) -> None:
    words = ["--prompts", str(models / "prompts.txt"), "--seed", "4", "--latent-frames", "6", "--shard-clips", "2"]
    assert rollouts(models, *words, "-o", str(tmp_path / "clips")) == 0
    assert "3 clips in 2 shards: 2 to make" in capsys.readouterr().out
    clips = ClipSet.open(tmp_path / "clips")
    assert [clips[i].caption for i in range(3)] == PROMPTS.splitlines()[:1] + PROMPTS.splitlines()[3:]
    assert [clips[i].seed for i in range(3)] == [4, 5, 6]
    assert clips.latent_shape == (3, 6, 8, 8)
    assert clips.facts["block_frames"] == 3
    assert clips.facts["source"] == "rollouts"
    pipe = ARL2Pipeline.from_pretrained(models / "teacher")
    blocks = pipe.stream([clips[1].caption], num_frames=21, seed=5)
    expected = torch.cat([block.latents for block in blocks], dim=2)[0]
    torch.testing.assert_close(clips[1].latents, expected, atol=2e-3, rtol=2e-3)  # kept in half precision
    # Done is done; other settings are refused, and a cut shard is named.
    assert rollouts(models, *words, "-o", str(tmp_path / "clips")) == 0
    assert "2 shards: 0 to make" in capsys.readouterr().out
    assert rollouts(models, *words, "-o", str(tmp_path / "clips"), "--steps", "1") == 2
    assert "steps was None and is 1" in capsys.readouterr().err
    shard = tmp_path / "clips/shards/00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert rollouts(models, *words, "-o", str(tmp_path / "clips")) == 2
    assert "and run 'arl2 rollouts' again to make that shard" in capsys.readouterr().err


def test_seeds_of_a_list_and_frames_that_do_not_fill_blocks(models, tmp_path, capsys) -> None:
    words = ["--prompts", str(models / "seeded.jsonl"), "--seed", "4", "--frames", "12"]
    assert rollouts(models, *words, "-o", str(tmp_path / "clips")) == 0
    assert "clips have 21 (6 latent frames)" in capsys.readouterr().out
    clips = ClipSet.open(tmp_path / "clips")
    assert ([clips[0].seed, clips[1].seed], clips.frames) == ([77, 5], 6)


def test_true_scenes_and_openings(models, tmp_path) -> None:
    words = ["--shapes-prompts", "3", "--hiding", "--latent-frames", "6", "--seed", "1"]
    assert rollouts(models, *words, "--real", "-o", str(tmp_path / "real"), model="hybrid") == 0
    assert rollouts(models, *words, "--known-blocks", "1", "-o", str(tmp_path / "opened")) == 0
    real, opened = ClipSet.open(tmp_path / "real"), ClipSet.open(tmp_path / "opened")
    assert (real.facts["source"], opened.facts["known_blocks"]) == ("true scenes", 1)
    for i in range(3):
        assert real[i].caption == opened[i].caption
        torch.testing.assert_close(opened[i].latents[:, :3], real[i].latents[:, :3], atol=1e-2, rtol=1e-2)
        assert (opened[i].latents[:, 3:] - real[i].latents[:, 3:]).abs().max() > 0.05


def test_videos_become_clips(models, tmp_path, capsys) -> None:
    from PIL import Image

    folder = tmp_path / "videos"
    folder.mkdir()
    for name, count in (("long", 20), ("short", 3)):
        noise = np.random.default_rng(count).integers(0, 255, (count, 48, 96, 3), dtype=np.uint8)
        pages = [Image.fromarray(page) for page in noise]
        pages[0].save(folder / f"{name}.gif", save_all=True, append_images=pages[1:], duration=60)
        (folder / f"{name}.txt").write_text("a red circle")
    words = ["--videos", str(folder), "--latent-frames", "3", "--clips-per-video", "4", "-o", str(tmp_path / "clips")]
    assert rollouts(models, *words, model="hybrid") == 0
    assert "1 of 2 videos are too short and left out, first 'short.gif'" in capsys.readouterr().out
    clips = ClipSet.open(tmp_path / "clips")
    assert (len(clips), clips[1].caption, clips.facts["source"]) == (2, "a red circle", "videos")
    assert not torch.equal(clips[0].latents, clips[1].latents)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompts", "prompts.txt", "--model", "hybrid"), "a teacher is a softmax model"),
        (("--prompts", "prompts.txt", "--model", "nothing"), "There is no model"),
        (("--prompts", "prompts.txt", "--latent-frames", "7"), "use 6 or 9"),
        (("--prompts", "prompts.txt", "--real"), "--real goes with --shapes-prompts"),
        (("--prompts", "prompts.txt", "--known-blocks", "1"), "--known-blocks goes with --shapes-prompts"),
        (("--prompts", "prompts.txt", "--clips-per-video", "2"), "goes with --videos"),
        (("--prompts", "empty.txt"), "holds no prompts"),
        (("--prompts", "nothing.txt"), "cannot be read"),
        (("--prompts", "longer.jsonl"), "'frames' means nothing for rollouts"),
        (("--shapes-prompts", "0"), "The number of scenes is 0"),
        (("--shapes-prompts", "2", "--hiding", "--no-colour", "0.5"), "leave --no-colour out"),
        (("--shapes-prompts", "2", "--no-colour", "2"), "share between 0 and 1"),
        (("--shapes-prompts", "2", "--real", "--known-blocks", "1"), "leave --known-blocks out"),
        (("--shapes-prompts", "2", "--real", "--steps", "2"), "leave --steps, --candidates and --window out"),
        (("--shapes-prompts", "2", "--known-blocks", "9"), "leave a block to generate"),
        (("--videos", "nothing"), "There is no folder"),
        (("--videos", "."), "holds no videos"),
        (("--prompts", "prompts.txt", "-o", "empty.txt"), "is a file"),
    ],
)
def test_bad_input(models, tmp_path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(models)
    model = () if "--model" in words else ("--model", "teacher")
    where = () if "-o" in words else ("-o", str(tmp_path / "clips"))
    assert main(["rollouts", "--latent-frames", "6", *model, *words, *where]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("clips/shards/*"))


def test_one_source_must_be_named(tmp_path, capsys) -> None:
    assert main(["rollouts", "-o", str(tmp_path)]) == 2
    assert "Give --prompts-file, --shapes-prompts or --videos." in capsys.readouterr().err
    assert main(["rollouts", "-o", str(tmp_path), "--videos", "x", "--shapes-prompts", "3"]) == 2
    assert "--shapes-prompts and --videos exclude each other" in capsys.readouterr().err


def test_an_interrupt_keeps_whole_shards(models, tmp_path, capsys) -> None:
    words = ["--shapes-prompts", "300", "--latent-frames", "3", "--shard-clips", "1", "--batch", "1"]

    def interrupt() -> None:
        _until((tmp_path / "clips/shards/00001.json").exists)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code = rollouts(models, *words, "-o", str(tmp_path / "clips"))
    watcher.join()
    assert code == 130
    said = capsys.readouterr().err
    whole = len(list((tmp_path / "clips/shards").glob("*.json")))
    assert 2 <= whole < 300
    assert f"{whole} of 300 shards are whole" in said
    # Ctrl-C may fall between the making of a file and the knowing of it; the next writer of that shard removes it.
    assert len(list((tmp_path / "clips").rglob("*.part*"))) <= 1


def test_two_processes_killed_and_gone_on_with_by_one(models, tmp_path) -> None:
    """Two processes, killed at some moment, then one: as if nothing had happened, to the bit."""
    words = ["rollouts", "--model", str(models / "teacher"), "--threads", "1", "--quiet", "--shapes-prompts", "16"]
    words += ["--latent-frames", "6", "--shard-clips", "1", "--batch", "1", "--known-blocks", "1", "-o"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    processes = start_twice([sys.executable, "-m", "arl2.cli.main", *words, str(killed)])
    shards = killed / "shards"
    try:
        # Whichever begins: it has as many shards to come, and the other one all of its own.
        _until(lambda: any(shards.glob("*.json")))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert 1 <= len(list(shards.glob("*.json"))) < 16
    times = {
        file.name: file.stat().st_mtime_ns for file in shards.glob("*.arrow") if file.with_suffix(".json").exists()
    }
    assert main([*words, str(killed)]) == 0
    assert {name: (shards / name).stat().st_mtime_ns for name in times} == times
    assert not list(shards.glob("*.part*"))
    assert main([*words, str(whole)]) == 0
    assert same_clips(killed, whole)
    assert (killed / "clips.json").read_text() == (whole / "clips.json").read_text()


def _until(happened, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)

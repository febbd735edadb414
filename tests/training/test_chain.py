"""The recipe as one command, 12 steps a stage, on the embedded teacher: clips to a model that generates."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.chain import STAGES, STEPS, finished, killed_in, losses
from tests.training.make_golden_losses import GOLDEN
from tests.training.warm import warm_python

from arl2.cli.main import main
from arl2.pipeline.pipeline import ARL2Pipeline


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warm_python(tmp_path_factory.mktemp("warm") / "a") as executable:
        yield executable


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """Run to its end by one process a stage, never stopped."""
    folder = tmp_path_factory.mktemp("chain") / "whole"
    finished(folder, python)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "shapes-75" / "transformer" / "diffusion_pytorch_model.safetensors")


def test_the_result_generates_and_is_what_sensitivity_chose(whole, tmp_path):
    ranking = json.loads((whole / "sensitivity" / "ranking.json").read_text())
    pipe = ARL2Pipeline.from_pretrained(whole / "shapes-75")
    assert pipe.transformer.config.layer_plan == ranking["plans"]["3"]
    assert pipe.transformer.config.layer_plan.count("H") == 3
    video = tmp_path / "video.mp4"
    words = ["a red circle moves right", "--model", str(whole / "shapes-75"), "--frames", "21", "--output", str(video)]
    assert main(["generate", *words, "--quiet"]) == 0
    assert video.stat().st_size > 1000
    assert load_file(whole / "shapes-75.safetensors").keys() != weights(whole).keys()
    # A model with a stage 1 of its own has the plan of its recipe.
    other = ARL2Pipeline.from_pretrained(whole / "shapes-100")
    assert other.transformer.config.layer_plan == "WWHH"
    assert other.transformer.config.state_horizon == 24  # it went through the second time, on long clips


def equal_losses(stage: str, losses: dict[int, float], expected: dict[int, float], *, rel: float) -> None:
    """The same computation up to rounding.

    Adam without momentum moves each weight of DMD by the learning rate at first, however small its gradient: what was
    rounding in the stage before becomes a difference, which grows to 4e-4 in twelve steps, and about threefold in each
    five after them. A wrong batch, share or scale shows in these twelve already.
    """
    assert losses.keys() == expected.keys()
    for step, loss in losses.items():
        grown = rel if stage != "dmd" else 5e-3
        assert loss == pytest.approx(expected[step], rel=grown), f"step {step} of {stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_recorded_ones(stage, whole):
    """To record anew, on purpose: python tests/training/make_golden_losses.py."""
    recorded = {int(step): value for step, value in json.loads(GOLDEN.read_text())[stage].items()}
    equal_losses(stage, losses(whole, stage), recorded, rel=1e-4)
    assert max(recorded) == STEPS


def test_two_processes_are_one(whole, python):
    folder = whole.parent / "two"
    # Who shares the work changes neither clips nor ranking, so they are taken as they are; of the two students one is
    # trained again, and DMD goes on from the other one, so that it starts with the same weights.
    for made in ("clips", "sensitivity", "align-100", "distill-100"):
        shutil.copytree(whole / made, folder / made)
    said = finished(folder, python, processes=2)
    for stage in STAGES:
        equal_losses(stage, losses(folder, stage), losses(whole, stage), rel=1e-5)
    assert said.count("finished before") == 8


def test_killed_in_stage_2_the_same_words_give_the_same_bits(whole, python):
    folder = whole.parent / "killed"
    for made in ("clips", "align", "sensitivity"):
        shutil.copytree(whole / made, folder / made)
    killed_in(folder, python, "distill", models="75")
    assert not (folder / "shapes-75").exists()
    said = finished(folder, python, models="75")
    assert "Resuming from step" in said
    expected, got = weights(whole), weights(folder)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert losses(folder, "distill") == losses(whole, "distill")

"""Every recipe is whole and strict: its settings are those of the code as it stands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arl2.errors import ConfigError
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.shapes.training.codec import CodecConfig
from arl2.shapes.training.dmd import SceneDmdConfig
from arl2.shapes.training.reward_model import RewardModelConfig
from arl2.shapes.training.teacher import TeacherConfig
from arl2.training.conversion.align import AlignConfig
from arl2.training.conversion.distill import DistillConfig

RECIPES = Path(__file__).parents[2] / "recipes"
KINDS = {
    "codec": CodecConfig,
    "teacher": TeacherConfig,
    "dmd": SceneDmdConfig,
    "verifier": RewardModelConfig,
    "align": AlignConfig,
    "distill": DistillConfig,
}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda p: p.stem)
def test_a_recipe_says_every_setting(path):
    kind = KINDS[path.stem.split("-")[1]]
    values = json.loads(path.read_text())
    assert record_to_mapping(record_from_mapping(kind, values)) == values


def test_the_readme_of_the_recipes_names_each():
    text = (RECIPES / "README.md").read_text()
    assert all(path.name in text for path in RECIPES.glob("*.json"))


def test_a_setting_without_a_default_is_asked_for():
    with pytest.raises(ConfigError, match="The setting 'codec' has no default; give codec=VALUE"):
        record_from_mapping(TeacherConfig, {"loop": {"steps": 1}})


def commands(folder: Path, model: str, **environment: str) -> list[str]:
    """What the script says of a model, with a Python that only repeats its words: nothing is trained."""
    shutil.copytree(RECIPES, folder / "recipes", ignore=shutil.ignore_patterns("intermediate"), dirs_exist_ok=True)
    (folder / "src" / "arl2" / "shapes" / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "src" / "arl2" / "shapes" / "weights" / "weights").write_text("a teacher")
    python = folder / "python"
    python.write_text(
        f'#!/bin/bash\nif [[ $1 == -c ]]; then exec "{sys.executable}" "$@"; fi\necho "RUN ${{*:3}}"\n'
        'if [[ $1 == recipes/average.py ]]; then echo "MEAN ${*:2}"; mkdir -p "${@: -1}"; fi\n'
    )
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(folder / "recipes" / "shapes.sh")],
        env={**os.environ, "MODELS": model, "PYTHON": str(python), "FOLDER": "runs/recipe", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()


def test_a_model_may_have_a_stage_1_of_its_own(tmp_path):
    said = commands(tmp_path, "100")
    runs = [line.split()[1:] for line in said if line.startswith("RUN ")]
    assert [run[:3] for run in runs if run[0] == "train"] == [
        ["train", "align", "runs/recipe/align-100"],
        ["train", "distill", "runs/recipe/distill-100"],
        ["train", "distill", "runs/recipe/distill-100"],  # its end
        ["train", "dmd", "runs/recipe/dmd-100"],
        ["train", "distill", "runs/recipe/distill-100-long"],  # again, on long clips, from the mean of both
        ["train", "distill", "runs/recipe/distill-100-long-memory"],
        ["train", "dmd", "runs/recipe/dmd-100-long"],
        ["train", "distill", "runs/recipe/distill-100-recall"],  # both of these from the mean again
        ["train", "dmd", "runs/recipe/dmd-100-bounce1"],
        ["train", "dmd", "runs/recipe/dmd-100-bounce2"],
        ["train", "dmd", "runs/recipe/dmd-100-bounce3"],
    ]
    starts = [word for run in runs for word in run if word.startswith("start_from=")]
    assert starts == [
        f"start_from=runs/recipe/{start}/export"
        for start in (
            *("distill-100", "mean-100", "distill-100-long", "distill-100-long", "mean-100-long", "mean-100-long"),
            *("mean-100-bounce1", "mean-100-bounce2"),
        )
    ]
    assert any("aligned=runs/recipe/align-100/export" in run for run in runs)
    folder = "runs/recipe"
    mean = f"MEAN {folder}/distill-100/export {folder}/dmd-100/export -o {folder}/mean-100/export"
    assert mean in said
    long = f"{folder}/distill-100-long-memory/export {folder}/dmd-100-long/export"
    assert f"MEAN {long} -o {folder}/mean-100-long/export" in said
    for number, share in enumerate((0.5, 0.8, 0.7), 1):
        rounds = " ".join(f"{folder}/dmd-100-bounce{made}/export" for made in range(1, number + 1))
        mean = f"{folder}/distill-100-recall/export {rounds} --share {share} -o {folder}/mean-100-bounce{number}/export"
        assert f"MEAN {mean}" in said
    assert not any(run[0] == "sensitivity" for run in runs)  # this model's recipe names its layers


def test_a_model_may_end_with_dmd(tmp_path):
    (tmp_path / "runs" / "recipe" / "dmd-50-bounce" / "export").mkdir(parents=True)
    ranking = tmp_path / "runs" / "recipe" / "sensitivity" / "ranking.json"
    ranking.parent.mkdir()
    ranking.write_text('{"ranking": [3, 2, 0, 1], "plans": {"2": "SSHH"}}')
    runs = [line.split()[1:] for line in commands(tmp_path, "50") if line.startswith("RUN ")]
    assert [run[:3] for run in runs if run[0] == "train"] == [
        ["train", "align", "runs/recipe/align"],
        ["train", "distill", "runs/recipe/distill-50"],
        ["train", "dmd", "runs/recipe/dmd-50-bounce"],
    ]
    assert "start_from=runs/recipe/distill-50/export" in runs[-2]
    assert ["export", "runs/recipe/dmd-50-bounce/export"] in [run[:2] for run in runs]
    assert (tmp_path / "runs" / "recipe" / "shapes-50").is_dir()


def test_what_was_made_of_an_older_run_is_made_again(tmp_path):
    (tmp_path / "runs" / "recipe" / "dmd-75-bounce" / "export").mkdir(parents=True)
    ranking = tmp_path / "runs" / "recipe" / "sensitivity" / "ranking.json"
    ranking.parent.mkdir()
    ranking.write_text('{"ranking": [3, 2, 0, 1], "plans": {"3": "HSHH"}}')

    def made(**environment: str) -> list[str]:
        said = [line.split() for line in commands(tmp_path, "75", **environment)]
        return [words[1] for words in said if words[0] == "RUN" and words[1] in ("train", "export")] + [
            words[0] for words in said if words[0] == "MEAN"
        ]

    assert made() == ["train", "train", "train", "train", "export", "MEAN"]
    assert made() == []
    assert made(DMD="bounce_weight=2") == ["train", "train", "export", "MEAN"]
    assert made(DMD="bounce_weight=2") == []

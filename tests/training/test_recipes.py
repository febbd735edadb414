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


def test_a_model_may_have_a_stage_1_of_its_own(tmp_path):
    """By the commands that the script gives; none of them is run."""
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("intermediate"))
    (tmp_path / "src" / "arl2" / "shapes" / "weights").mkdir(parents=True)
    (tmp_path / "src" / "arl2" / "shapes" / "weights" / "weights").write_text("a teacher")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\nif [[ $1 == -c ]]; then exec "{sys.executable}" "$@"; fi\necho "RUN ${{*:3}}"\n'
        'if [[ $1 == recipes/average.py ]]; then echo "MEAN ${*:2}"; mkdir -p "${@: -1}"; fi\n'
    )
    python.chmod(0o755)

    said = subprocess.run(
        ["bash", str(tmp_path / "recipes" / "shapes.sh")],
        env={**os.environ, "MODELS": "100", "PYTHON": str(python), "FOLDER": "runs/recipe"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout

    runs = [line.split()[1:] for line in said.splitlines() if line.startswith("RUN ")]
    assert [run[:3] for run in runs if run[0] == "train"] == [
        ["train", "align", "runs/recipe/align-100"],
        ["train", "distill", "runs/recipe/distill-100"],
        ["train", "distill", "runs/recipe/distill-100"],  # its end
        ["train", "dmd", "runs/recipe/dmd-100"],
    ]
    assert any("aligned=runs/recipe/align-100/export" in run for run in runs)
    folder = "runs/recipe"
    mean = f"MEAN {folder}/distill-100/export {folder}/dmd-100/export -o {folder}/mean-100/export"
    assert mean in said.splitlines()
    assert not any(run[0] == "sensitivity" for run in runs)  # this model's recipe names its layers

"""Every recipe is whole and strict: its settings are those of the code as it stands."""

import json
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

"""Extensions: what they register is found by name everywhere, names stay unique, and a broken one is named."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from arl2 import extensions
from arl2.errors import ConfigError
from arl2.extensions import Registry
from arl2.model.registry import CARDS, find_card
from arl2.pipeline.folder import pipeline_folder
from arl2.pipeline.registry import CODECS, EMBEDDED, TEXT_PARTS, default_model, register_model
from arl2.training.engine.registry import TASKS, all_tasks, find_task, task_classes


def test_the_shapes_world_is_found_by_name():
    assert set(EMBEDDED) <= set(CARDS)
    assert all(pipeline_folder(name).transformer.is_dir() for name in EMBEDDED)
    assert {"GroupCodec", "TinyCodec", "AutoencoderKLWan"} == set(CODECS)
    assert {"shapes", "words", "umt5"} == set(TEXT_PARTS)
    assert find_card(default_model()).kind == "embedded"
    assert {"codec", "teacher", "reward-model", "dmd", "align", "distill"} == set(TASKS)


def test_every_training_task_has_the_classes_it_names():
    for task in all_tasks():
        kind, trained_by = task_classes(task)
        assert "loop" in {name for one in kind.__mro__ for name in vars(one).get("__annotations__", {})}
        assert callable(trained_by)


def test_a_former_name_still_works_and_an_unknown_one_is_answered():
    assert find_task("verifier") is find_task("reward-model")
    with pytest.raises(ConfigError, match=r"no training task named 'distil'\. Did you mean 'distill'\?"):
        find_task("distil")


def test_the_entry_point_is_the_built_in_one():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert tuple(project["entry-points"][extensions.GROUP].values()) == extensions.BUILT_IN


def test_a_name_is_given_once():
    registry: Registry[int] = Registry("number", {"one": 1})
    registry.register("two", 2)
    registry.register("two", 2)
    assert list(registry) == ["two", "one"]
    for name in ("one", "two"):
        with pytest.raises(ConfigError, match=f"another number named '{name}' already"):
            registry.register(name, 3)
    with pytest.raises(ConfigError, match="'other' are to be the default model"):
        register_model("other", Path("anywhere"), default=True)


@pytest.fixture
def module(monkeypatch):
    """A module of a third party, whose extension is called next."""
    made = ModuleType("third_party")
    monkeypatch.setitem(sys.modules, "third_party", made)
    monkeypatch.setattr(extensions, "_places", lambda: [*extensions.BUILT_IN, "third_party:register"])
    yield made
    extensions._loaded.discard("third_party:register")


def test_a_third_party_is_called_once_when_a_registry_is_read(module):
    registry: Registry[int] = Registry("number")
    module.register = lambda: registry.register("three", 3)
    assert registry["three"] == 3
    module.register = lambda: registry.register("four", 4)
    assert list(registry) == ["three"]


def test_an_extension_that_fails_is_named(module):
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"'third_party:register' failed \(AttributeError"):
            find_card("causal-forcing")


def test_registries_load_no_torch():
    code = (
        "import sys, arl2.pipeline.registry as p, arl2.model.registry as m, arl2.training.engine.registry as t;"
        "p.default_model(); list(m.CARDS); list(t.TASKS); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Settings: unknown names and wrong types are errors that teach."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from arl2.errors import ConfigError
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.training.engine.config import config_differences, read_config_values, with_overrides
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.start import resolved_settings


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner = field(default_factory=Inner)
    kind: Literal["small", "large"] = "small"
    folder: str | None = None
    fast: bool = False
    pair: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 2**64}, r"Got loop\.seed 18446744073709551616; give a whole number from 0 to 18446744073709551615"),
        ({"seed": -1}, r"Got loop\.seed -1"),
        ({"log_every": 10**30}, r"Got loop\.log_every 1000000000000000000000000000000; .* to 1000000000"),
    ],
)
def test_numbers_of_the_loop_have_bounds(given: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoopConfig(**{"steps": 1, **given})


def test_values_become_a_config_and_back() -> None:
    config = record_from_mapping(Outer, {"steps": 3, "inner": {"rate": 1, "sizes": [4]}, "pair": [1, 2.5]})
    assert config == Outer(steps=3, inner=Inner(rate=1.0, sizes=(4,)), pair=(1.0, 2.5))
    values = record_to_mapping(config)
    assert values["kind"] == "small"
    assert record_from_mapping(Outer, json.loads(json.dumps(values))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepps": 3}, "'stepps'. Did you mean 'steps'"),
        ({"steps": 3, "inner": {"rates": 1}}, r"'inner\.rates'. Did you mean 'rate'"),
        ({"zzz": 3}, "Accepted: steps, inner"),
        ({"steps": 3.0}, "'steps' takes a whole number; got 3.0"),
        ({"steps": True}, "a whole number"),
        ({"steps": 1, "fast": 1}, "true or false"),
        ({"steps": 1, "kind": "tiny"}, 'one of "small", "large"; got "tiny"'),
        ({"steps": 1, "folder": 5}, "takes text"),
        ({"steps": 1, "inner": 5}, "named values"),
        ({"steps": 1, "inner": {"sizes": [1, "a"]}}, r"'inner\.sizes' takes a whole number"),
        ({"steps": 1, "pair": [1]}, "'pair' takes a list of a number"),
        ({"steps": 1, "inner": {"rate": math.nan}}, r"'inner\.rate' takes a number; got NaN"),
        ({"steps": 1, "inner": {"rate": -math.inf}}, r"'inner\.rate' takes a number; got -Infinity"),
        ({"steps": 1, "inner": {"rate": 10**400}}, r"'inner\.rate' takes a number"),
        ({"steps": 1, "inner": {"rate": True}}, r"'inner\.rate' takes a number; got true"),
        ({"steps": 1, "pair": [0, math.nan]}, "'pair' takes a number; got NaN"),
        ({"steps": math.inf}, "'steps' takes a whole number; got Infinity"),
    ],
)
def test_mistakes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        record_from_mapping(Outer, values)


def test_overrides_are_json_or_text() -> None:
    values = with_overrides({"inner": {"rate": 1}}, ["inner.sizes=[1,2]", "folder=runs/a", "steps=3", "new.x=null"])
    assert values == {"inner": {"rate": 1, "sizes": [1, 2]}, "folder": "runs/a", "steps": 3, "new": {"x": None}}
    for word in ("steps", "=3", "a..b=1"):
        with pytest.raises(ConfigError, match="name=value"):
            with_overrides({}, [word])
    with pytest.raises(ConfigError, match="single value"):
        with_overrides({"steps": 3}, ["steps.more=1"])


@dataclass(frozen=True, kw_only=True)
class Lists:
    clips: tuple[str, ...] = ()
    rates: tuple[float, float] = (0.0, 1.0)
    some: tuple[int, ...] | None = None
    name: str = ""
    kind: Literal["small", "large"] = "small"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clips=runs/a"], Lists(clips=("runs/a",))),
        (["clips=runs/a,runs/b"], Lists(clips=("runs/a", "runs/b"))),
        (["clips=runs/a", "clips=runs/b,runs/c"], Lists(clips=("runs/a", "runs/b", "runs/c"))),
        (['clips=["runs/a,b"]'], Lists(clips=("runs/a,b",))),
        (["rates=0.5,1e-3", "some=3,4"], Lists(rates=(0.5, 0.001), some=(3, 4))),
        (["some=null", "kind=large"], Lists(kind="large")),
        (["name=a,b", "name=c"], Lists(name="c")),
        (['name="5"'], Lists(name="5")),
    ],
)
def test_lists_are_typed_with_commas_or_in_several_words(words: list[str], expected: Lists) -> None:
    made = record_from_mapping(Lists, with_overrides({}, words))
    assert made == expected
    assert all(type(clip) is str for clip in (*made.clips, made.name, made.kind))


@pytest.mark.parametrize(
    "word",
    [
        *("loop.learning_rate=NaN", "loop.learning_rate=-1", "loop.learning_rate=0", "loop.learning_rate=true"),
        *("loop.steps=-1", "loop.steps=0", "loop.steps=1.5", "loop.steps=true", "loop.max_minutes=Infinity"),
        *("loop.adam_betas=[0.9,NaN]", "loop.gradient_clip=-Infinity", "latent_weight=NaN", "loop.warmup_steps=-1"),
    ],
)
def test_numbers_of_a_run_are_refused_by_name(word: str, tmp_path: Path) -> None:
    name = word.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(name)):
        resolved_settings("codec", tmp_path, overrides=["loop.max_minutes=1", word])


def test_differences_name_nested_settings() -> None:
    lines = config_differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5})
    assert lines == ["b.c: 2 -> 4", "b.d: 3 -> null", "e: null -> 5"]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps = 3\n[inner]\nrate = 1.5\n")
    assert read_config_values(tmp_path / "a.toml") == {"steps": 3, "inner": {"rate": 1.5}}
    (tmp_path / "a.json").write_text('{"steps": 3}')
    assert read_config_values(tmp_path / "a.json") == {"steps": 3}
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds list"):
        read_config_values(tmp_path / "b.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_values(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r"\.json or \.toml"):
        read_config_values(tmp_path / "a.yaml")

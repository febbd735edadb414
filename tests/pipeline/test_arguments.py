"""Arguments of another type or size are refused by name, before any work; nothing gives a traceback of torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arl2.errors import Arl2Error, ConfigError
from arl2.pipeline.budget import MemoryBudgetError
from arl2.pipeline.options import ModelSource
from arl2.pipeline.pipeline import ARL2Pipeline
from pipeline.stand_in import stand_in_pipeline

PROMPT = "red"
# By argument: strategies of values that no argument of its type takes.
ODD = st.sampled_from(
    [
        *(object(), {"a": 1}, b"bytes", float("nan"), float("inf"), -1, 2.5, True, 1j, {1, 2}, [[]], [None], ["x"]),
        *("", "xyz", np.zeros((2, 2)), torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), Path("a"), range(3)),
        lambda: None,
    ]
)
TAKES: dict[str, Any] = {
    "num_frames": lambda value: False,
    "height": lambda value: False,
    "width": lambda value: False,
    "seed": lambda value: isinstance(value, range) and len(value) == 1,
    "steps": lambda value: False,
    "num_inference_steps": lambda value: False,
    "first_block_candidates": lambda value: False,
    "window": lambda value: False,
    "sink": lambda value: False,
    "sink_positions": lambda value: False,
    "negative_prompt": lambda value: value == "" if isinstance(value, str) else False,
    "guidance_scale": lambda value: False,
    "context_noise": lambda value: value == 2.5 if isinstance(value, float) else False,
    "prompt_embeds": lambda value: False,
    "negative_prompt_embeds": lambda value: False,
    "known": lambda value: False,
    "generator": lambda value: False,
    "options": lambda value: False,
    "callback_on_step_end": callable,
}


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    made = stand_in_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", TAKES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=ODD)
def test_every_argument_is_refused_by_its_name(pipe: ARL2Pipeline, name: str, value: Any) -> None:
    if TAKES[name](value):
        return
    given_: dict[str, Any] = {"num_frames": 9, name: value}
    prompt = None if name == "prompt_embeds" else PROMPT
    for call in (pipe, pipe.stream):
        with pytest.raises(Arl2Error, match=name):
            call(prompt, **given_)


@pytest.mark.parametrize("prompt", [5, 5.0, b"red", ["red", 5], {"red": 1}, {"red"}, object(), [None], Path("red")])
def test_a_prompt_is_text(pipe: ARL2Pipeline, prompt: Any) -> None:
    with pytest.raises(ConfigError, match=r"^Got prompt .*; give text, or a list of texts \(one video each\)\.$"):
        pipe(prompt, num_frames=9)
    stream = pipe.stream(PROMPT, num_frames=9)
    with stream, pytest.raises(ConfigError, match="Got prompt"):
        stream.change_prompt(prompt)


@pytest.mark.parametrize(
    ("name", "value"),
    [("output_type", np.zeros(2)), ("output_type", 3), ("output_type", "mp4"), ("callback_on_block_end", 3)],
)
def test_arguments_of_a_call(pipe: ARL2Pipeline, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"Got {name}"):
        pipe(PROMPT, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("rewind_kind", np.zeros(2)), ("rewind_kind", None), ("rewind_blocks", "x")]
)
def test_arguments_of_a_stream(pipe: ARL2Pipeline, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"Got {name}"):
        pipe.stream(PROMPT, **{name: value})


def test_sizes_that_no_machine_holds(pipe: ARL2Pipeline) -> None:
    with pytest.raises(Arl2Error, match="Got height 1000000; give at most 16384"):
        pipe(PROMPT, height=1000000, width=1000000)
    with pytest.raises(MemoryBudgetError, match=r"1000000000 .*video frames|video frames .* GB .* pipe\.stream"):
        pipe(PROMPT, num_frames=10**9)
    stream = pipe.stream(PROMPT, num_frames=10**9)
    with stream:
        assert next(iter(stream)).index == 0


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"weights": 5}, "weights"),
        ({"base": b"x"}, "base"),
        ({"config": []}, "config"),
        ({"decoder": 1}, "decoder"),
        ({"hybrid_layers": 3}, "hybrid_layers"),
        ({"hybrid_layers": "0,1"}, "hybrid_layers"),
        ({"hybrid_layers": (-1,)}, "hybrid_layers"),
        ({"hybrid_layers": (1.5,)}, "hybrid_layers"),
        ({"hybrid_layers": (True,)}, "hybrid_layers"),
        ({"weights_branch": "emma"}, "weights_branch"),
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": torch.float32}, "dtype"),
        ({"device": 0}, "device"),
    ],
)
def test_a_source_is_checked_when_it_is_made(given_: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"Got {name}"):
        ModelSource(**given_)


def test_a_source_takes_paths_as_text_and_lists_of_layers() -> None:
    source = ModelSource(weights="a.pt", base=Path("base"), hybrid_layers=[0, np.int64(2)])  # type: ignore[arg-type]
    assert source == ModelSource(weights=Path("a.pt"), base=Path("base"), hybrid_layers=(0, 2))
    assert all(type(layer) is int for layer in source.hybrid_layers)

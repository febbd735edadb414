"""Arguments of another type, given to a pipeline in a process of its own; run by ``test_arguments.py``.

Inside the suite every function checks its annotations when it is called, which hides what a user would see.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import Arl2Error, ConfigError
from arl2.pipeline.options import ModelSource
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


PIPE = stand_in_pipeline()
PIPE.set_progress_bar_config(disable=True)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(list(TAKES)), value=ODD)
def every_argument_is_refused_by_its_name(name: str, value: Any) -> None:
    if TAKES[name](value):
        return
    given_: dict[str, Any] = {"num_frames": 9, name: value}
    prompt = None if name == "prompt_embeds" else PROMPT
    for call in (PIPE, PIPE.stream):
        with pytest.raises(Arl2Error, match=name):
            call(prompt, **given_)


def a_prompt_is_text() -> None:
    for prompt in (5, 5.0, b"red", ["red", 5], {"red": 1}, {"red"}, object(), [None], Path("red")):
        said = r"^Got prompt .*; give text, or a list of texts \(one video each\)\.$"
        with pytest.raises(ConfigError, match=said):
            PIPE(prompt, num_frames=9)
        with PIPE.stream(PROMPT, num_frames=9) as stream, pytest.raises(ConfigError, match=said):
            stream.change_prompt(prompt)


def arguments_of_a_call_and_of_a_stream() -> None:
    for call, name, value in (
        *((PIPE, "output_type", value) for value in (np.zeros(2), 3, "mp4")),
        (PIPE, "callback_on_block_end", 3),
        *((PIPE.stream, "rewind_kind", value) for value in (np.zeros(2), None)),
        (PIPE.stream, "rewind_blocks", "x"),
    ):
        with pytest.raises(ConfigError, match=f"Got {name}"):
            call(PROMPT, **{name: value})


def a_source_is_checked_when_it_is_made() -> None:
    for name, values in {
        "model": (5, ""),
        "weights": (5,),
        "base": (b"x",),
        "config": ([],),
        "decoder": (1,),
        "hybrid_layers": (3, "0,1", (-1,), (1.5,), (True,)),
        "weights_branch": ("emma",),
        "dtype": ("float8", torch.float32),
        "device": (0,),
        "offload": ("disk", None, True),
    }.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"Got {name}"):
                ModelSource(**{name: value})


def a_source_takes_paths_as_text_and_lists_of_layers() -> None:
    given = {"weights": "a.pt", "base": Path("base"), "hybrid_layers": [0, np.int64(2)]}
    source = ModelSource(**given)
    assert source == ModelSource(weights=Path("a.pt"), base=Path("base"), hybrid_layers=(0, 2))
    assert all(type(layer) is int for layer in source.hybrid_layers)


if __name__ == "__main__":
    every_argument_is_refused_by_its_name()
    a_prompt_is_text()
    arguments_of_a_call_and_of_a_stream()
    a_source_is_checked_when_it_is_made()
    a_source_takes_paths_as_text_and_lists_of_layers()

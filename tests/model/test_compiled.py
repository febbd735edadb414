"""Compiled passes: no graph break, nothing compiled again once the window is full, the bits of the plain passes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from arl2.errors import ConfigError
from arl2.model import compiled
from arl2.model.execution import Execution
from support import tiny_model

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found() -> dict:
    """What a process of its own has found."""
    paths = [str(TESTS), str(Path(compiled.__file__).parents[2])]
    made = subprocess.run(
        [sys.executable, "-m", "model.compiled_streams"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return json.loads(made.stdout)


@pytest.mark.parametrize(("plan", "graphs"), [("HSHS", 4), ("HH", 3), ("SS", 3), ("ranks", 3), ("offloaded", 4)])
def test_compiled_passes_have_the_same_bits_and_nothing_is_compiled_again(found, plan, graphs):
    """Two passes for each kind of layer, of which softmax layers have one; and the last layer, which writes alone."""
    assert found[plan]["same bits"]
    assert found[plan]["graphs after the window was full"] == 0
    assert found[plan]["graphs"] <= graphs
    assert found[plan]["breaks"] == 0


def test_another_batch_and_width_are_compiled_as_well(found):
    assert found["blocks of another batch and width"] == 7


def test_compiled_passes_give_the_golden_numbers(found):
    assert found["selfcheck"]["code"] == 0, found["selfcheck"]["said"]
    assert "42 of 42 tensors within their limit" in found["selfcheck"]["said"]


def test_named_backends_are_not_compiled(found):
    assert found["graphs within use_backends"] == 0


@pytest.mark.parametrize(("device", "missing"), [("cpu", r"a C\+\+ compiler"), ("cuda", "a C compiler")])
def test_a_compiler_that_is_not_there_is_named_before_the_work(device, missing, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled, "is_installed", lambda _: True)
    with pytest.raises(ConfigError, match=f"Compiling needs {missing}.*compile 'off'"):
        Execution(compile="inductor").check(torch.device(device))
    monkeypatch.setattr(compiled, "is_installed", lambda _: False)
    with pytest.raises(ConfigError, match="Compiling needs Triton"):
        Execution(compile="inductor").check(torch.device("cuda"))


def test_what_cannot_be_compiled_is_one_sentence(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def refuse(*_: object) -> None:
        raise torch._dynamo.exc.Unsupported("Unsupported method call\n  and a page of it", case_name="a test")

    model = tiny_model("H")
    model.execution = Execution(compile="eager")
    monkeypatch.setattr(model.runner, "_stream", refuse)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    memory.fill_random(2)  # a blank state is not read, so its passes are not compiled
    with (
        torch.no_grad(),
        pytest.raises(ConfigError, match=r"^The model could not be compiled with 'eager': Unsupp.*\.$"),
    ):
        model.predict(torch.zeros(1, 3, 2, 4, 6), torch.zeros(1, 2), torch.zeros(1, 5, 10), memory)

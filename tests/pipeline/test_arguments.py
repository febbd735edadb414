"""Arguments of another type or size are refused by name, before any work; nothing gives a traceback of torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from arl2.errors import Arl2Error
from arl2.pipeline.budget import MemoryBudgetError
from arl2.pipeline.pipeline import ARL2Pipeline
from pipeline.stand_in import stand_in_pipeline

PROMPT = "red"


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    made = stand_in_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def test_arguments_of_another_type_are_refused_by_their_names() -> None:
    tests = Path(__file__).resolve().parents[1]
    words = [sys.executable, "-W", "ignore", "-m", "pipeline.wrong_arguments"]
    run = subprocess.run(words, cwd=tests, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def test_sizes_that_no_machine_holds(pipe: ARL2Pipeline) -> None:
    with pytest.raises(Arl2Error, match="Got height 1000000; give at most 16384"):
        pipe(PROMPT, height=1000000, width=1000000)
    with pytest.raises(MemoryBudgetError, match=r"1000000000 .*video frames|video frames .* GB .* pipe\.stream"):
        pipe(PROMPT, num_frames=10**9)
    stream = pipe.stream(PROMPT, num_frames=10**9)
    with stream:
        assert next(iter(stream)).index == 0

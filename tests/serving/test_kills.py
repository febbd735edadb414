"""kill -9 of everything that writes, in a few seconds; the table of 200 kills is in docs/robustness.md#kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX's")
@pytest.mark.parametrize(("only", "kills"), [("HLS", 6), ("mp4", 2), ("prompts-file", 2), ("training", 2)])
def test_nothing_is_lost_repeated_or_left(tmp_path: Path, only: str, kills: int) -> None:
    words = ["--kills", str(kills), "--only", only, "--seed", "1", "--jobs", "2", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    assert done.returncode == 0, (figures, done.stderr[-3000:])
    assert figures["damaged"] == []
    assert figures["kills"] >= kills

"""kill -9 of everything that writes, in a few seconds; the table of 200 kills is in docs/robustness.md#kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 8  # shared out over the kinds
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX's")
def test_nothing_is_lost_repeated_or_left(tmp_path: Path) -> None:
    kinds = ("each block", "every 3 blocks", "mp4", "prompts-file", "training")
    words = ["--kills", str(KILLS), "--only", *kinds, "--seed", "1", "--jobs", "2", "--folder", str(tmp_path)]
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
    assert figures["kills"] >= KILLS
    assert len(figures["rows"]) == len(kinds)

"""Some hundred damaged files of every kind that a user can hand over; ``benchmarks/fuzz.py`` does ten thousand."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_changes import BYTES, JSON, JSON_LINES, TEXT, YAML, Change, change_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = 124  # two of each kind


@pytest.mark.skipif(sys.platform != "linux", reason="it watches memory and processor time through /proc")
def test_every_kind_of_file_is_read_or_refused_by_name() -> None:
    """In a process of its own, as it forks: no other error, nothing over ten seconds or 2 GB, no silent difference."""
    words = [sys.executable, str(BENCHMARKS / "fuzz.py"), "--cases", str(CASES), "--seed", "1717"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cases"] == CASES
    assert [found[name] for name in ("traceback", "unnamed", "hang", "memory", "silent")] == [0] * 5
    assert found["peak_bytes"] < 2_000_000_000


@pytest.mark.parametrize(
    ("changes", "content"),
    [
        (BYTES, bytes(range(256)) * 4),
        (TEXT, b"one\ntwo: 2\n"),
        (JSON, b'{"a": [1, 2.5, null], "b": {"c": "d"}}'),
        (JSON_LINES, b'{"a": 1}\n{"b": [2]}\n'),
        (YAML, b"a: 1\nb: [2, 3]\n"),
    ],
    ids=["bytes", "text", "json", "lines", "yaml"],
)
def test_changes_change_and_are_the_same_each_time(tmp_path: Path, changes: tuple[Change, ...], content: bytes) -> None:
    path = tmp_path / "file"
    for seed in range(40):
        outcomes = []
        for _ in range(2):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                path.rmdir()
            path.write_bytes(content)
            said = change_file(path, changes, random.Random(seed))
            regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 10**9
            outcomes.append((said, path.read_bytes() if regular else None))
        assert outcomes[0] == outcomes[1]
        assert outcomes[0][1] != content

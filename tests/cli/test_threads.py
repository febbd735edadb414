"""How many threads a command computes with: it follows from what was asked, the model, the machine, the environment."""

import os

import pytest

from arl2.cli.main import main
from arl2.cli.threads import choose_threads, usable_cores


@pytest.mark.parametrize(
    ("asked", "parameters", "cores", "environment", "number", "why"),
    [
        (3, 10, 8, {"OMP_NUM_THREADS": "8"}, 3, "requested"),
        (None, 10, 8, {"OMP_NUM_THREADS": "8"}, 8, "OMP_NUM_THREADS"),
        (None, 10, 8, {}, 1, "small"),
        (None, 10**9, 8, {}, 8, "each core"),
        (None, None, 8, {}, 8, "each core"),
        (None, 10**9, 2, {}, 2, "may use no more"),
        (None, 10**9, 16, {}, 8, "each core"),
    ],
)
def test_the_number_of_threads(asked, parameters, cores, environment, number, why):
    chosen = choose_threads(asked, parameters, of_torch=8, cores=cores, environment=environment)
    assert chosen.number == number
    assert why in chosen.reason


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "?"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_a_limit(tmp_path, files, most):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores(tmp_path) == min(own, most or own)


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch, capsys, before, after):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == after
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that it is undone

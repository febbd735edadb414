"""What every test process begins with: annotations that are checked, torch threads, and signals as in a terminal."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread, as two test processes share two cores. ARL2_TEST_THREADS=2 runs all on two: sums then come in another
# order. For the processes that tests start as well; all this is read when torch is imported.
THREADS = int(os.environ.get("ARL2_TEST_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# Threads that wait for one without a core sleep instead of spinning on the core that it needs: 20 times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The files that take longest, in this order. A file is the work of one process (--dist loadfile), so that what its
# tests share is made once; the last to run should be short.
LONG = (
    "training/test_chain.py",
    "serving/cluster/test_ray.py",
    "training/test_sharding.py",
    "model/test_compiled.py",
    "serving/browser/test_page.py",
    "serving/web/test_process.py",
    "gpu/test_triton_kernels.py",
    "files/test_fuzz.py",
    "serving/test_kills.py",
    "attention/test_sequence_parallel.py",
    "cli/test_cli.py",
    "serving/web/test_videos.py",
    "training/test_scene_dmd.py",
    "gpu/test_without_float64.py",
    "gpu/test_account.py",
    "docs/test_readme.py",
    "golden/test_selfcheck.py",
    "training/test_loop.py",
    "cli/test_rollouts.py",
    "cli/test_generate_jobs.py",
)

# What is timed on this machine is kept for the tests alone.
_CACHE = tempfile.TemporaryDirectory(prefix="arl2-cache-")
os.environ["ARL2_CACHE"] = _CACHE.name

import torch  # noqa: E402

from annotations import check_annotations  # noqa: E402

check_annotations("arl2")
torch.set_num_threads(THREADS)  # now, as some modules compute what their tests compare with

# What starts the tests may have them ignored (nohup, a shell's "&"); tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Commands take --threads for the whole process; the next test is not to compute on as many."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; all others stay in their order."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))

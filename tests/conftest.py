"""What every test process begins with: annotations that are checked, torch threads, and signals as in a terminal."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest

# One thread, as two test processes share two cores. ARL2_TEST_THREADS=2 runs all on two: sums then come in another
# order. For the processes that tests start as well; all this is read when torch is imported.
THREADS = int(os.environ.get("ARL2_TEST_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# Threads that wait for one without a core sleep instead of spinning on the core that it needs: 20 times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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

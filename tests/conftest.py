"""What every test process begins with: a number of torch threads, and signals as in a terminal."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch

# One thread, as two test processes share two cores and threads wait for each other where other tests have the second
# core. ARL2_TEST_THREADS=2 runs everything on two: sums then come in another order.
THREADS = int(os.environ.get("ARL2_TEST_THREADS", "1"))
torch.set_num_threads(THREADS)
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the processes that tests start

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

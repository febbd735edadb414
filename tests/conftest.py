"""What every test process begins with: one torch thread, as two of them share two cores; signals as in a terminal."""

import os
import signal
import sys

import torch

torch.set_num_threads(1)
# The processes that tests start likewise: two threads wait for each other where other tests have the second core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What starts the tests may have them ignored (nohup, a shell's "&"); tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

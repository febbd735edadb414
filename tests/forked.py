"""Several ranks on this machine, as torchrun starts them; forked from one process, they import everything once."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def forked_ranks(count: int, work: Callable[[], int | None]) -> list[int]:
    """Call ``work`` in each of ``count`` ranks; their exit codes. Only from a process that has computed nothing yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **own})
            code = 1
            try:
                code = work() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def program(module: str, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests in a process of its own."""
    # Before those there are: the package that is tested need not be the one that is installed.
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

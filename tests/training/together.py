"""Two processes that train together on this machine, as torchrun starts them."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_twice(command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The two, running; each one's standard error is a pipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # Before those there are: the package that is tested need not be the one that is installed.
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def started_twice(command: Sequence[str], *, timeout: float = 600) -> list[tuple[int, str]]:
    """Exit code and standard error of each of the two."""
    started = start_twice(command)
    try:
        said = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, words) for process, words in zip(started, said, strict=True)]

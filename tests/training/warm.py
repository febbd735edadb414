"""An interpreter that has everything imported, for scripts that start ``arl2`` many times: seconds less each time.

``with warm_python(folder) as python:`` gives the path of an executable that takes the words of an interpreter. Those of
``-m arl2.cli.main`` and ``-m torch.distributed.run`` run in forks of one process, with the caller's folder, environment
and streams, and so do the ranks that the latter starts; all others go to the real interpreter. Of signals, only one
that ends the caller reaches its fork, which is killed (SIGKILL) as soon as the caller has gone.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

_EXECUTABLE = """\
#!/bin/sh
[ "$1 $2 $3" != "-u -m arl2.cli.main" ] || shift # as ranks are started
case "$1 $2" in
  "-m arl2.cli.main" | "-m torch.distributed.run") shift ;;
  *) exec {python} "$@" ;;
esac
export PYTHON_EXEC={executable} # what torch.distributed.run starts ranks with
exec {python} -S {script} ask {address} "$@"
"""
_LENGTH = 8  # bytes before a request


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The executable, in a folder with a short path, for as long as the ``with`` lasts."""
    folder.mkdir()
    address, executable, script = folder / "socket", folder / "python", Path(__file__)
    words = {"python": sys.executable, "executable": str(executable), "script": str(script), "address": str(address)}
    executable.write_text(_EXECUTABLE.format(**{name: shlex.quote(word) for name, word in words.items()}))
    executable.chmod(0o755)
    serving = subprocess.Popen([sys.executable, str(script), "serve", str(address)])
    try:
        while not address.exists():
            assert serving.poll() is None, "the warm interpreter did not start"
            time.sleep(0.02)
        yield str(executable)
    finally:
        serving.kill()
        serving.wait()


def ask(address: str, words: list[str]) -> int:
    """Have a module run with its words, and wait for its exit status."""
    request = json.dumps({"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(_LENGTH, "big")], [0, 1, 2])
        server.sendall(request)
        answer = server.recv(1)
    return answer[0] if answer else 1


def serve(address: str) -> None:
    """Run what is asked for, each in a fork, until its end or that of its caller."""
    for name in ("arl2.cli", "arl2.training", "arl2.shapes"):
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)
    importlib.import_module("datasets")
    importlib.import_module("torch.distributed.run")
    importlib.import_module("arl2").ARL2Pipeline.from_pretrained("shapes-teacher")  # with what that imports
    forks = multiprocessing.get_context("fork")
    running = dict[socket.socket, Any]()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen()
        Path(f"{address}.new").rename(address)  # there once it listens
        while True:
            ready = connection.wait([server, *running, *(fork.sentinel for fork in running.values())])
            # What has lost its caller is gone before the next one is heard.
            for caller, fork in list(running.items()):
                if caller in ready:
                    fork.kill()
                elif fork.sentinel not in ready:
                    continue
                fork.join()
                with contextlib.suppress(OSError), caller:
                    caller.sendall(bytes([fork.exitcode % 256]))
                del running[caller]
            if server in ready:
                caller, _ = server.accept()
                request, streams = _read(caller)
                fork = forks.Process(target=_run, args=(request, streams))
                fork.start()
                running[caller] = fork
                for stream in streams:
                    os.close(stream)


def _read(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, streams, _, _ = socket.recv_fds(caller, _LENGTH, 3)
    with caller.makefile("rb") as sent:
        return json.loads(sent.read(int.from_bytes(length, "big"))), streams


def _run(request: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    module, *words = request["words"]
    sys.exit(importlib.import_module(module).main(words))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))

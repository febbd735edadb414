"""An interpreter that has everything imported, for scripts that start ``arl2`` many times: seconds less each time.

``with warm_python(folder) as python:`` gives the path of an executable that takes the words of an interpreter. Those of
``-m arl2.cli.main`` run in a fork of one process, with the caller's folder, environment and streams; all others go to
the real interpreter. A signal to the caller does not reach the fork, so what is to be killed needs a real process.
"""

import importlib
import json
import os
import pkgutil
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXECUTABLE = """\
#!/bin/sh
[ "$1 $2" = "-m arl2.cli.main" ] || exec {python} "$@"
shift 2
exec {python} -S {script} ask {address} "$@"
"""
_LENGTH = 8  # bytes before a request


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The executable, in a folder with a short path, for as long as the ``with`` lasts."""
    folder.mkdir()
    address, executable, script = folder / "socket", folder / "python", Path(__file__)
    words = {"python": sys.executable, "script": str(script), "address": str(address)}
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
    """Have a command run, and wait for its exit status."""
    request = json.dumps({"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(_LENGTH, "big")], [0, 1, 2])
        server.sendall(request)
        answer = server.recv(1)
    return answer[0] if answer else 1


def serve(address: str) -> None:
    """Run what is asked for, one command after the other, each in a fork."""
    for name in ("arl2.cli", "arl2.training", "arl2.shapes"):
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)
    importlib.import_module("datasets")
    importlib.import_module("arl2").ARL2Pipeline.from_pretrained("shapes-teacher")  # with what that imports
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen()
        Path(f"{address}.new").rename(address)  # there once it listens
        while True:
            caller, _ = server.accept()
            with caller:
                if os.fork() == 0:
                    _answer(caller)
                os.wait()


def _answer(caller: socket.socket) -> None:
    code = 1
    try:
        length, streams, _, _ = socket.recv_fds(caller, _LENGTH, 3)
        with caller.makefile("rb") as sent:
            request = json.loads(sent.read(int.from_bytes(length, "big")))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        code = importlib.import_module("arl2.cli.main").main(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        caller.sendall(bytes([code]))
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))

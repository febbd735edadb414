"""A cluster on this machine, Ray in a process of its own, and viewers that note what comes: for tests and figures."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from arl2.serving.live.wire import FRAME_HEADER

DRIVER = Path(__file__).parent / "driver.py"


class Running:
    """The cluster, over HTTP and sockets, and its driver, for what only Ray knows."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process, self.port = process, port

    def ask(self, **what: Any) -> Any:
        """The driver's answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the driver has ended"
        answer = json.loads(line)
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def http(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            read = answer.read()
            return json.loads(read) if read else None

    def create(self, prompt: str = "a red circle moves right on navy", **more: Any) -> str:
        return self.http("POST", "/v1/streams", {"prompt": prompt, "seed": 3, **more})["id"]

    def owner(self, stream: str) -> tuple[str, int]:
        """Name and process of the worker that the router names."""
        found = self.ask(do="owner", stream=stream)
        assert len(found) == 1, found
        return tuple(found[0])

    def has_moved(self, stream: str, process: int) -> bool:
        """Whether the router names a worker that is not this process."""
        found = self.ask(do="owner", stream=stream)
        return bool(found) and found[0][1] != process

    def workers(self, number: int) -> None:
        """Wait until so many answer."""
        until(lambda: len(self.ask(do="processes")) == number, seconds=60)


class Viewer:
    """A socket that is read in a thread; what came can be looked at any time."""

    def __init__(self, running: Running, stream: str, after: int = -1) -> None:
        url = f"ws://127.0.0.1:{running.port}/v1/streams/{stream}/live?after={after}"
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(url, max_size=None, open_timeout=30))
        self.heads: list[dict[str, Any]] = []
        self.frames: list[tuple[int, int]] = []  # block and frame
        self.times: list[float] = []
        self.receipts: list[dict[str, Any]] = []
        self.closed: int | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    self.frames.append(FRAME_HEADER.unpack_from(message)[:2])
                    self.times.append(time.monotonic())
                elif (read := json.loads(message))["type"] == "video.chunk_metadata":
                    self.heads.append(read)
                elif read["type"].startswith("session.interaction"):
                    self.receipts.append(read)
        except ConnectionClosed:
            pass
        self.closed = self._socket.close_code

    def whole(self, blocks: int) -> Callable[[], bool]:
        """So many blocks have come, the last one whole."""

        def is_whole() -> bool:
            assert self._thread.is_alive(), f"the socket was closed with {self._socket.close_code}"
            heads = self.heads
            return len(heads) > blocks or (
                len(heads) == blocks and bool(self.frames) and self.frames[-1][1] == last_frame(heads[-1])
            )

        return is_whole

    def send(self, **message: Any) -> None:
        self._socket.send(json.dumps({"type": "session.interaction", **message}))

    def close(self) -> None:
        self._open.close()
        self._thread.join(10)

    def check(self, first: int = 0) -> None:
        """No block and no frame is missing, or there twice."""
        heads, frames = list(self.heads), list(self.frames)
        blocks = [head["block"] for head in heads]
        assert blocks == list(range(first, first + len(heads))), (blocks, [head["skipped"] for head in heads])
        assert not any(head["skipped"] for head in heads)
        if frames:
            start = heads[0]["frame"]
            assert [frame for _, frame in frames] == list(range(start, start + len(frames)))
        for before, head in pairwise(heads):
            assert head["frame"] == before["frame"] + before["frames"]


def last_frame(head: dict[str, Any]) -> int:
    return head["frame"] + head["frames"] - 1


def until(holds: Callable[[], Any], *, seconds: float = 30.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@contextlib.contextmanager
def running(home: Path, place: Path, **host: Any) -> Iterator[Running]:
    """Two warm workers and a front.

    Args:
        home: a folder for Ray's token, and the driver's log.
        place: of the store.
        host: settings of the workers' hosts.
    """
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {"model": "shapes-75", "store": str(place), "source": {"device": "cpu"}, "cpus": 0.5, "host": host}
    environment = {
        **os.environ,
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1.0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    scratch = f"/tmp/arl2-ray-{os.getpid()}"  # sockets lie there, whose paths may not be long
    with (home / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(arguments), str(port), scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
    try:
        cluster = Running(process, port)
        try:
            assert cluster.answer()["up"] == process.pid
        except BaseException:
            print((home / "driver.log").read_text()[-4000:])
            raise
        yield cluster
    finally:
        _end(process)
        with contextlib.suppress(OSError):  # what Ray's processes said, for whoever looks for a fault
            shutil.copytree(Path(scratch) / "session_latest/logs/serve", home / "logs", dirs_exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _end(process: subprocess.Popen) -> None:
    """Let the driver end Serve and Ray, and see to it that nothing stays."""
    assert process.stdin is not None
    assert process.stdout is not None
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.stdin.close()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

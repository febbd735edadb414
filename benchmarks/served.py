"""``arl2 serve`` as a process that is killed and started again, and a viewer that reconnects; tests use both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

PATIENCE = 120.0  # seconds until a test gives up; the machine may be busy


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Served:
    """A server that can be killed and started again on the same port and store."""

    def __init__(self, store: Path, port: int | None = None, *words: str) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.address, timeout=PATIENCE)
        self.words = ["serve", "--port", str(self.port), "--store", str(store), "--threads", "1", *words]
        self._log = store.parent / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", "arl2.cli.main", *self.words]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if ready:
            self.wait(lambda: self.http.get("/ready").status_code == 200)

    def wait(self, true: Callable[[], bool]) -> None:
        """Until something is so; the server must live meanwhile."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, self.said
            try:
                if true():
                    return
            except httpx.TransportError:
                time.sleep(0.05)
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE} s: {self.said}")

    @property
    def said(self) -> str:
        """Everything that it wrote."""
        return self._log.read_text()

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, and wait; the exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def post(self, way: str, **body: Any) -> dict[str, Any]:
        """Something that is done."""
        answer = self.http.post(way, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()


@contextmanager
def served(store: Path, *words: str) -> Iterator[Served]:
    """A server that runs, until the end of the test."""
    found = Served(store, None, *words)
    found.start()
    try:
        yield found
    finally:
        found.http.close()
        if found.process is not None and found.process.poll() is None:
            found.end()


@dataclass
class Viewer:
    """Watches one stream over any number of sockets, and keeps what it has seen whole.

    Attributes:
        blocks: heads of whole blocks, in the order in which they came.
        texts: other messages.
        reconnects: sockets that were lost.
        on_lost: called then.
    """

    server: Served
    stream: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)
    reconnects: int = 0
    on_lost: Callable[[], None] = lambda: None

    @property
    def last(self) -> int:
        """The last block that was seen whole; -1 before the first."""
        return self.blocks[-1]["block"] if self.blocks else -1

    def watch(
        self,
        until: int,
        on_frame: Callable[[int, int], None] = lambda block, frame: None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """Until a block is seen whole, however often the server goes away.

        Args:
            until: the block.
            on_frame: told of every frame's block, and how many of the block there are with it.
            patience: seconds.
        """
        end = time.monotonic() + patience
        while self.last < until:
            assert time.monotonic() < end, (self.last, self.server.said)
            try:
                self._socket(until, on_frame)
            except (ConnectionClosed, InvalidHandshake, OSError, EOFError):
                self.reconnects += 1
                self.on_lost()
                time.sleep(0.05)

    def _socket(self, until: int, on_frame: Callable[[int, int], None]) -> None:
        address = f"ws://127.0.0.1:{self.server.port}/v1/streams/{self.stream}/live?after={self.last}"
        with connect(address, open_timeout=PATIENCE, close_timeout=0.1, max_queue=None) as socket:
            head, frames = None, 0
            while self.last < until:
                got = socket.recv(timeout=PATIENCE)
                if isinstance(got, str):
                    message = json.loads(got)
                    if message["type"] == "video.chunk_metadata":
                        head, frames = message, 0
                    else:
                        self.texts.append(message)
                    continue
                assert head is not None
                frames += 1
                on_frame(head["block"], frames)
                if frames == head["frames"]:
                    self.blocks.append(head)

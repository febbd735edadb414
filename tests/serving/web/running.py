"""A server on a free port of this machine, in a thread of the test's process, with real connections."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from arl2.serving.web.app import create_app
from arl2.serving.web.server import Server, address_of, bind
from arl2.serving.web.settings import ModelFacts, WebSettings
from serving.web.fake_host import FakeHost

FACTS = ModelFacts(name="fake", width=64, height=64, fps=16, block_seconds=0.25, examples=("a red circle",))
PATIENCE = 20.0  # seconds until a test gives up


class Running:
    """A server that runs, and ways to speak to it."""

    def __init__(self, host: FakeHost, server: Server, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self.host, self.server, self.address, self._loop = host, server, address, loop
        self.http = httpx.Client(base_url=address, timeout=PATIENCE)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def socket(self, stream: str, query: str = "", **more: Any) -> ClientConnection:
        """A viewer."""
        address = self.address.replace("http", "ws")
        chosen = {"open_timeout": PATIENCE, "max_queue": None, **more}
        return connect(f"{address}/v1/streams/{stream}/live{query}", **chosen)

    def stream(self, **body: Any) -> str:
        """A new stream's name."""
        answer = self.http.post("/v1/streams", json={"prompt": "a red circle", **body})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]


@contextmanager
def running(host: FakeHost | None = None, **settings: Any) -> Iterator[Running]:
    """A server over a fake host."""
    host = host or FakeHost()
    listening = bind("127.0.0.1", 0)
    chosen = WebSettings(model=FACTS, **settings)
    server = Server(create_app(host, chosen), most_message=chosen.most_message, drain=host.drain)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listening]),))
    thread.start()
    found = Running(host, server, address_of(listening), loop)
    try:
        assert found.http.get("/health").json()["status"] == "ok"
        yield found
    finally:
        found.http.close()
        loop.call_soon_threadsafe(server.stop)
        thread.join(PATIENCE)
        loop.close()
        assert not thread.is_alive()


def said(socket: ClientConnection, kind: str | None = None) -> dict[str, Any]:
    """The next text message, or the next one of a type; binary ones before it are passed over."""
    while True:
        got = socket.recv(timeout=PATIENCE)
        if isinstance(got, str):
            message = json.loads(got)
            if kind in (None, message["type"]):
                return message


def say(socket: ClientConnection, kind: str, **more: Any) -> None:
    """A text message of the viewer's."""
    socket.send(json.dumps({"type": kind, **more}))

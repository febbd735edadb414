"""A server while its model is loaded: it is alive, not ready, and what fails then ends it with its sentence."""

import asyncio
import threading
from concurrent.futures import Future

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from arl2.errors import ConfigError
from arl2.serving.web.app import create_app
from arl2.serving.web.process import Opened, run_server
from arl2.serving.web.server import address_of, bind
from arl2.serving.web.settings import WebSettings
from serving.web.fake_host import FakeHost
from serving.web.running import FACTS, PATIENCE


def test_it_answers_while_the_model_is_loaded():
    loaded, warm, said, host = threading.Event(), threading.Event(), [], FakeHost()

    async def warming() -> None:
        await asyncio.to_thread(warm.wait, PATIENCE)
        raise ConfigError("No warm block could be made.")

    async def load() -> Opened:
        await asyncio.to_thread(loaded.wait, PATIENCE)
        return Opened(create_app(host, WebSettings(model=FACTS)), warming, host.drain, host.close)

    with bind("127.0.0.1", 0) as listening:
        url, result = address_of(listening), Future()

        def serve() -> None:
            try:
                result.set_result(run_server(listening, load, say=said.append, url=url))
            except ConfigError as error:
                result.set_exception(error)

        thread = threading.Thread(target=serve)
        thread.start()
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            assert http.get("/health").json()["status"] == "ok"
            for way in ("/ready", "/v1/streams"):
                answer = http.get(way)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
                assert answer.headers["retry-after"] == "2"
            with pytest.raises(InvalidStatus), connect(url.replace("http", "ws") + "/v1/streams/x/live"):
                raise AssertionError("a socket before there is a model")
            loaded.set()
            while http.get("/ready").status_code == 503:
                pass
            assert http.get("/v1/streams").json()["data"] == []
        warm.set()
        with pytest.raises(ConfigError, match="No warm block"):
            result.result(PATIENCE)
        thread.join(PATIENCE)
    assert host.closed


def test_a_model_that_cannot_be_loaded_ends_it_with_its_sentence():
    async def load() -> Opened:
        raise ConfigError("There is no such model.")

    with bind("127.0.0.1", 0) as listening, pytest.raises(ConfigError, match="no such model"):
        run_server(listening, load, say=lambda sentence: None, url="")

"""``arl2 serve --ray`` from its start to its end, with a Ray that starts nothing."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from arl2.serving.cluster.settings import ClusterSettings
from arl2.serving.live.objects import StoreError
from arl2.serving.live.store import StreamStore


@dataclass
class Played:
    """The module, and what it did to Ray, in order."""

    module: ModuleType
    done: list[str] = field(default_factory=list)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    done: list[str] = []

    def killed(number: int, frame: FrameType | None) -> None:
        done.append("killed")  # Ray's own handler ends the process

    def init(**given: Any) -> None:
        done.append("init")
        signal.signal(signal.SIGTERM, killed)

    def noted(name: str) -> Any:
        return lambda *given, **named: done.append(name)

    serve = SimpleNamespace(start=noted("start"), run=noted("run"), shutdown=noted("shutdown"), delete=noted("delete"))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=noted("ray.shutdown"), serve=serve))
    deployments = SimpleNamespace(application=lambda settings: settings)
    monkeypatch.setitem(sys.modules, "arl2.serving.cluster.deployments", deployments)
    name = "arl2.serving.cluster.running"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    yield Played(module, done)
    del sys.modules[name]  # others are to get one with the real Ray


@pytest.mark.parametrize(("address", "ends"), [(None, "shutdown"), ("auto", "delete")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_streams_though_ray_has_handlers_of_its_own(
    tmp_path: Path, played: Played, number: signal.Signals, address: str | None, ends: str
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 1:
            os.kill(os.getpid(), number)

    assert played.module.run(ClusterSettings(store=str(tmp_path)), address=address, say=say) == 0
    assert played.done == ["init", "start", "run", ends, "ray.shutdown"]
    assert said[-1].startswith("ending")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_store_that_a_server_has_is_told_before_ray_starts(tmp_path: Path, played: Played) -> None:
    store = StreamStore(tmp_path)
    try:
        with pytest.raises(StoreError, match="in use by"):
            played.module.run(ClusterSettings(store=str(tmp_path)))
    finally:
        store.close()
    assert played.done == []

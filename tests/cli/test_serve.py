"""``arl2 serve`` before anything is loaded: what is missing, in use or cannot be is one sentence. The server itself is
tested in ``tests/serving/web``."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest

from arl2.cli.app import parse
from arl2.cli.main import main
from arl2.cli.serve import KEY_VARIABLE, Serve
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.store import StreamStore
from arl2.serving.web.facts import facts_of
from arl2.serving.web.server import bind


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow-origin", "example.org"], "give an origin such as https://example.org"),
        (["--allow-origin", "https://example.org/page"], "give an origin such as https://example.org"),
        (["--api-key", "clé"], "no header can carry"),
        (["--model", "shapes-7"], "shapes-75"),
        (["--port", "70000"], "0 to 65535"),
        (["--sleep-after", "soon"], "a number above 0"),
        (["--ray", "--threads", "1"], "does not go with --ray"),
        (["--host", "192.0.2.1"], "no address of this machine"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, words: list[str], said: str) -> None:
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_missing_extra_is_named(capsys, monkeypatch) -> None:
    found = importlib.util.find_spec
    for package, words, extra in (("uvicorn", [], "serve"), ("ray", ["--ray"], "cluster")):
        monkeypatch.setattr(importlib.util, "find_spec", partial(_without, package, found))
        assert main(["serve", *words]) == 2
        assert f'{package}, which is missing: pip install "arl2[{extra}]"' in capsys.readouterr().err


def _without(package: str, found, name: str):
    return None if name == package else found(name)


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_store_that_another_server_has_is_told_before_the_model_is_loaded(capsys, tmp_path: Path) -> None:
    store = StreamStore(tmp_path / "store")
    try:
        assert main(["serve", "--port", "0", "--store", str(tmp_path / "store")]) == 2
    finally:
        store.close()
    assert "in use" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "secret"])
def test_settings_of_a_cluster_are_those_of_the_command(capsys, monkeypatch, tmp_path: Path, key: str | None) -> None:
    import arl2.serving.cluster as cluster

    given = []

    def run(settings, **named) -> int:
        given.append((settings, named["host"], named["port"]))
        return 0

    monkeypatch.setitem(vars(cluster), "run", run)  # the attribute itself would load Ray
    words = ["--host", "0.0.0.0", "--port", "8123", "--max-sockets", "7", "--allow-host", "demo.example.org"]
    words += [] if key is None else ["--api-key", key]
    assert main(["serve", "--ray", "--workers", "3", "--store", str(tmp_path), *words]) == 0
    ((settings, host, port),) = given
    assert (host, port, settings.workers, settings.most_sockets) == ("0.0.0.0", 8123, 3, 7)
    assert (settings.api_key, settings.allow_hosts) == (key, ("demo.example.org",))
    assert ("everybody who reaches 0.0.0.0 may use this server" in capsys.readouterr().err) == (key is None)


def test_streams_are_kept_in_the_users_folder_of_states(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARL2_STATE", str(tmp_path))
    assert Serve().store == str(tmp_path / "streams")
    monkeypatch.delenv("ARL2_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Serve().store == str(tmp_path / "state" / "arl2" / "streams")
    command = parse(["serve", "--store", "s3://bucket/streams"])
    assert isinstance(command, Serve)
    assert command.store == "s3://bucket/streams"


def test_the_key_may_be_in_the_environment(monkeypatch) -> None:
    assert Serve().api_key is None
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert Serve().api_key == "secret"


def test_example_prompts_are_understood_by_their_model(recwarn) -> None:
    pipe = ARL2Pipeline.from_pretrained("shapes-75")
    facts = facts_of(pipe, "shapes-75")
    assert len(facts.examples) >= 4
    pipe.text.encode(list(facts.examples))
    assert not recwarn.list
    assert (facts.width, facts.fps, facts.block_seconds) == (64, 16, 0.75)
    assert facts_of(pipe, "some/folder").examples == ()

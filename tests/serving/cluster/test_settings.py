"""Settings of a cluster as ``serve run`` and a RayService give them, and the number of workers."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import arl2.serving.cluster as cluster
from arl2.errors import ConfigError
from arl2.serving.cluster.scaling import WANTED, by_share
from arl2.serving.cluster.settings import settings_of


def test_arguments_of_a_command_line_and_of_a_file_are_the_same() -> None:
    typed = settings_of(
        {
            "model": "shapes-75",
            "store": "/shared/streams",
            "workers": "2",
            "most_workers": "6",
            "gpus": "0.5",
            "host.point_every": "2",
            "source.device": "cpu",
            "api_key": "12345",
        }
    )
    read = settings_of(
        {
            "store": "/shared/streams",
            "workers": 2,
            "most_workers": 6,
            "gpus": 0.5,
            "host": {"point_every": 2},
            "source": {"device": "cpu", "model": "shapes-75"},
            "api_key": "12345",
        }
    )
    assert typed == read
    assert (typed.source.model, typed.host.point_every, typed.api_key) == ("shapes-75", 2, "12345")
    assert "12345" not in repr(typed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "store=PLACE"),
        ({"store": " "}, "Give store"),
        ({"store": "s", "worker": "2"}, "workers"),
        ({"store": "s", "workers": "two"}, "workers"),
        ({"store": "s", "workers": "0"}, "1 or more"),
        ({"store": "s", "workers": "3", "most_workers": "2"}, "at least workers, 3"),
        ({"store": "s", "gpus": "-1"}, "0 or more"),
        ({"store": "s", "most_sockets": "0"}, "1 or more"),
        ({"store": "s", "host.point_evry": "2"}, "point_every"),
        ({"store": "s", "host": "2", "host.point_every": "2"}, "one of them"),
        ({"store": "s", "source.dtype": "float12"}, "dtype"),
    ],
)
def test_mistakes_are_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of(given)


@pytest.mark.parametrize("said", ["[]", "{", '{"workers": 2}'])
def test_the_variable_of_app_is_checked(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.SETTINGS, said)
    with pytest.raises(ConfigError):
        _ = cluster.app


def test_importing_it_loads_neither_ray_nor_torch() -> None:
    script = (
        "import sys, arl2.serving.cluster as cluster\n"
        "from arl2.errors import ConfigError\n"
        "try: cluster.build({'store': 's', 'wrkers': 2})\n"
        "except ConfigError: print(sorted({'ray', 'torch', 'fastapi'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_as_many_workers_as_the_streams_share_of_real_time_needs() -> None:
    def wanted(shares: dict[str, float], running: list[str], target: int = 2) -> int:
        context = SimpleNamespace(
            aggregated_metrics={"share": shares}, running_replicas=running, target_num_replicas=target
        )
        return by_share(context)[0]

    assert wanted({"a": 0.1, "b": 0.1}, ["a", "b"]) == 1
    assert wanted({"a": 2.5 * WANTED, "b": 0.0}, ["a", "b"]) == 3
    assert wanted({"a": 9.0, "b": 0.1}, ["b"]) == 1  # a has ended
    assert wanted({}, ["a"]) == 2  # nothing is known: as it is
    assert wanted({"a": 0.0}, ["a"]) == 1

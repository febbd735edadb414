"""Fetching named models, against a server on loopback that speaks the Hub's protocol."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from arl2.checkpoints.hub import DownloadError, base_patterns, download, located, presence
from arl2.errors import CheckpointError, ConfigError
from arl2.model.registry import find_card
from checkpoints.hub_server import COMMIT, OTHER_COMMIT, HubServer

BASE, STUDENTS = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "zhuhz22/Causal-Forcing"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
NEEDED = {
    "tokenizer/tokenizer_config.json": b"{}",
    "tokenizer/tokenizer.json": b'{"model": 1}',
    "tokenizer/spiece.model": bytes(range(256)) * 40,
    "text_encoder/config.json": b'{"d_model": 4096}',
    "text_encoder/model.safetensors.index.json": json.dumps(
        {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    ).encode(),
    f"text_encoder/{SHARDS[0]}": b"first" * 2000,
    f"text_encoder/{SHARDS[1]}": b"second" * 2000,
    "vae/config.json": b'{"z_dim": 16}',
    "vae/diffusion_pytorch_model.safetensors": b"codec" * 2000,
    "scheduler/scheduler_config.json": b'{"shift": 3}',
    "transformer/config.json": b'{"num_layers": 30}',
}
NOT_NEEDED = {
    "README.md": b"# hello",
    "model_index.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"own",
}
# Larger than the client's pieces of 10 MB, so that a break in the middle leaves something to go on from.
LARGE = bytes(range(251)) * 100_000
WEIGHTS = {"chunkwise/causal_forcing.pt": LARGE, "framewise/causal_forcing.pt": b"framewise"}

# Runs steps of (function, name, keywords) and prints what each gave. The package's own __init__ would load torch.
SCRIPT = """
import dataclasses, json, pathlib, sys, types, arl2
package = types.ModuleType("arl2.checkpoints")
package.__path__ = [str(pathlib.Path(arl2.__file__).parent / "checkpoints")]
sys.modules["arl2.checkpoints"] = package
from arl2.checkpoints import hub
from arl2.errors import Arl2Error
from arl2.model.registry import find_card
results = []
for step, name, keywords in json.loads(sys.argv[1]):
    more = {"report": lambda line: None, "quiet": True} if step == "download" else {}
    try:
        given = getattr(hub, step)(find_card(name), **keywords, **more)
    except Arl2Error as error:
        results.append({"error": type(error).__name__, "message": str(error)})
    else:
        results.append(given and dataclasses.asdict(given))
assert "torch" not in sys.modules
print(json.dumps(results, default=str))
"""


@pytest.fixture
def hub():
    with HubServer({BASE: {**NEEDED, **NOT_NEEDED}, STUDENTS: dict(WEIGHTS)}) as server:
        yield server


class Client:
    """Another process with a cache of its own, whose Hub is the server."""

    def __init__(self, home: Path, address: str) -> None:
        self.home, self.address = home, address

    def __call__(self, *steps: tuple[str, str, dict[str, Any]], **environment: str) -> list[Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(steps)],
            env={**kept, **own, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def client(tmp_path, hub):
    return Client(tmp_path / "home", hub.address)


def test_fetched_found_and_found_offline(hub, client):
    name = "causal-forcing-framewise"
    before, absent, first, after = client(
        ("located", name, {}), ("presence", name, {}), ("download", name, {}), ("located", name, {})
    )
    assert before is None
    assert absent["present"] == []
    assert f"{STUDENTS}/framewise/causal_forcing.pt" in absent["missing"]
    assert first == after
    assert hub.fetched() == sorted([*NEEDED, "framewise/causal_forcing.pt"])  # and nothing else
    base, weights = Path(first["base"]), Path(first["weights"])
    assert base.name == COMMIT
    assert {file: (base / file).read_bytes() for file in NEEDED} == NEEDED
    assert weights.read_bytes() == b"framewise"

    hub.requests.clear()
    offline, found, again = client(
        ("download", name, {}), ("located", name, {}), ("download", "causal-forcing", {}), HF_HUB_OFFLINE="1"
    )
    assert offline == found == first
    assert hub.requests == []
    assert again["error"] == "DownloadError"
    assert "HF_HUB_OFFLINE forbids fetching it" in again["message"]


def test_a_broken_connection_goes_on_where_it_was(hub, client):
    hub.breaks.add("chunkwise/causal_forcing.pt")
    (got,) = client(("download", "causal-forcing", {}))
    assert Path(got["weights"]).read_bytes() == LARGE
    asked = [span for line, span in hub.requests if line.startswith("GET") and line.endswith("causal_forcing.pt")]
    assert len(asked) == 2
    assert asked[0] is None
    assert asked[1] is not None
    assert 0 < int(asked[1].removeprefix("bytes=").rstrip("-")) <= len(LARGE) // 2
    assert hub.breaks == set()


def test_a_download_that_stopped_half_way(hub, client):
    name, broken = "causal-forcing-framewise", f"{BASE}/vae/diffusion_pytorch_model.safetensors"
    hub.get_statuses[broken] = 503
    failed, partly, nothing = client(("download", name, {}), ("presence", name, {}), ("located", name, {}))
    assert failed["error"] == "DownloadError"
    assert "The Hub answered 503" in failed["message"]
    assert f"'arl2 download {name}' again" in failed["message"]
    assert nothing is None
    assert partly["located"] is None
    assert {broken, f"{STUDENTS}/framewise/causal_forcing.pt"} <= set(partly["missing"])
    assert partly["present"]
    assert not set(partly["present"]) & set(partly["missing"])

    hub.get_statuses.clear()
    hub.requests.clear()
    (whole,) = client(("download", name, {}))
    assert {file: (Path(whole["base"]) / file).read_bytes() for file in NEEDED} == NEEDED
    # What came whole the first time is not fetched a second time.
    assert f"{BASE}/{hub.fetched()[0]}" not in partly["present"]
    assert not {f"{BASE}/{file}" for file in hub.fetched()} & set(partly["present"])
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched()


def test_a_snapshot_with_a_shard_missing_is_not_there(hub, client):
    (whole,) = client(("download", "causal-forcing-framewise", {}))
    (Path(whole["base"]) / "text_encoder" / SHARDS[1]).unlink()
    found, partly = client(("located", "causal-forcing-framewise", {}), ("presence", "causal-forcing-framewise", {}))
    assert found is None
    assert partly["missing"] == [f"{BASE}/text_encoder/{SHARDS[1]}"]


def test_refusals_say_what_to_do(hub, client):
    del hub.repositories[STUDENTS]["framewise/causal_forcing.pt"]
    gated, private = f"{STUDENTS}/causal-forcing++/framewise-2step.pt", f"{STUDENTS}/chunkwise/longvideo.pt"
    hub.statuses |= {gated: 403, private: 401, f"{STUDENTS}/causal-forcing++/framewise-1step.pt": 403}
    hub.codes[gated] = "GatedRepo"
    no_repository, no_file, no_revision, with_terms, no_access, forbidden = client(
        ("download", "self-forcing", {}),
        ("download", "causal-forcing-framewise", {}),
        ("download", "causal-forcing", {"revision": "nope"}),
        ("download", "causal-forcing-2step", {}),
        ("download", "causal-forcing-long", {}),
        ("download", "causal-forcing-1step", {}),
    )
    for result, said in (
        (no_repository, "The Hub has no gdhe17/Self-Forcing (404); check HF_ENDPOINT"),
        (no_file, f"{STUDENTS} has no such file (404)"),
        (no_revision, f"{STUDENTS} has no such revision (404); leave --revision out"),
        (with_terms, f"{STUDENTS} is gated (403); accept its terms on {hub.address}/{STUDENTS}, then set HF_TOKEN"),
        (no_access, f"The Hub refused access to {STUDENTS} (401)"),
        (forbidden, f"{STUDENTS} is gated (403)"),
    ):
        assert result["error"] == "DownloadError"
        assert result["message"].startswith(said)


def test_no_hub_at_all(tmp_path):
    with HubServer({}) as gone:
        address = gone.address
    (unreachable,) = Client(tmp_path / "home", address)(("download", "causal-forcing", {}))
    assert unreachable["message"].startswith(f"{address} cannot be reached and {BASE} is not whole on this disk")


def test_a_repository_that_lacks_what_a_model_needs(hub, client):
    del hub.repositories[BASE]["vae/config.json"]
    (lacking,) = client(("download", "causal-forcing-framewise", {}))
    assert f"{BASE}/vae/config.json is missing here" in lacking["message"]


def test_a_revision_is_of_the_weights(hub, client):
    name = "causal-forcing-framewise"
    tuned, found, main = client(
        ("download", name, {"revision": "tuned"}), ("located", name, {"revision": "tuned"}), ("located", name, {})
    )
    assert tuned == found
    assert Path(tuned["base"]).name == COMMIT
    assert OTHER_COMMIT in tuned["weights"]
    assert main == tuned  # the only revision that is here


def test_models_without_a_file_of_their_own(hub, client):
    wan, arl2, shapes, nothing = client(
        ("download", "wan2.1-1.3b", {}), ("download", "arl2", {}), ("download", "shapes", {}), ("located", "shapes", {})
    )
    assert wan["weights"] is arl2["weights"] is None
    assert (Path(wan["base"]) / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == b"own"
    for refused in (shapes, nothing):
        assert refused["error"] == "ConfigError"
        assert "'shapes' ships with the package" in refused["message"]


# What a server cannot show is shown in this process, with the client's function replaced.


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "is full; 'causal-forcing' takes about 29 GB there: make room",
        ),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
        (RuntimeError("Data processing error: CAS service error"), "broke off (Data processing error: CAS"),
        (ConnectionResetError("peer"), "broke off (peer); check the network, then run 'arl2 download causal-forcing'"),
    ],
)
def test_failures_of_disk_and_line(monkeypatch, empty_cache, error, said):
    def failing(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(DownloadError) as refused:
        download(find_card("causal-forcing"), report=lambda line: None, quiet=True)
    assert said in str(refused.value)
    assert refused.value.__cause__ is error


def test_an_internal_fault_is_no_failed_download(monkeypatch, empty_cache):
    def failing(*_: object, **__: object) -> str:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(KeyError):
        download(find_card("causal-forcing"), report=lambda line: None, quiet=True)


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": "../x.safetensors"}}', b"\xff"]
)
def test_an_index_that_lies(empty_cache, index):
    snapshot = empty_cache / f"models--{BASE.replace('/', '--')}" / "snapshots" / COMMIT / "text_encoder"
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[2] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (snapshot / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match="index"):
        presence(find_card("causal-forcing"))


def test_what_is_fetched():
    assert "transformer/*" in base_patterns(find_card("wan2.1-1.3b"))
    assert "transformer/*" not in base_patterns(find_card("causal-forcing"))
    with pytest.raises(ConfigError, match="ships with the package"):
        located(find_card("shapes"))

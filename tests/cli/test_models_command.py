"""``arl2 models`` and ``arl2 download``: what people see."""

import json
import os
import subprocess
import sys

import huggingface_hub
import huggingface_hub.constants
import pytest

from arl2.cli.main import main
from arl2.model.registry import CARDS
from checkpoints.hub_server import COMMIT, HubServer

BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

# The commands, in a process that fails if they load torch. (The package of the checkpoints would load it by itself.)
SCRIPT = """
import sys, types, pathlib, arl2
package = types.ModuleType("arl2.checkpoints")
package.__path__ = [str(pathlib.Path(arl2.__file__).parent / "checkpoints")]
sys.modules["arl2.checkpoints"] = package
from arl2.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def put(cache, repository, name):
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)


def test_the_list(capsys, cache):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, card in CARDS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[-1] == ("yes" if card.kind == "embedded" else "no")
        assert card.licence.split()[0] in line
        assert ("nothing" if card.kind == "embedded" else f"{card.disk_bytes / 1e9:.0f} GB") in line
        assert f"{card.device_bytes / 1e9:.0f} GB" in line or card.kind == "embedded"


def test_a_model_that_is_partly_there(capsys, cache):
    put(cache, BASE, "vae/config.json")
    assert main(["models", "--json"]) == 0
    on_disk = {card["name"]: card["on_disk"] for card in json.loads(capsys.readouterr().out)}
    embedded = {name for name, card in CARDS.items() if card.kind == "embedded"}
    assert {on_disk.pop(name) for name in embedded} == {"yes"}
    assert set(on_disk.values()) == {"partly"}
    assert main(["models", "causal-forcing"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "partly; missing" in out
    assert f"{BASE}/vae/config.json" not in out


def test_one_card(capsys, cache):
    assert main(["models", "causal-forcing-2step"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for said in (
        "1000 500, first block 1000 750 500 250 (before warping with shift 5.0)",
        "zhuhz22/Causal-Forcing: causal-forcing++/framewise-2step.pt",
        "a prompt, or a prompt and an image",
        "84.14 (Causal Forcing++, arXiv 2605.15141; not measured here)",
        "no; arl2 download causal-forcing-2step",
    ):
        assert said in out
    assert main(["models", "wan2.1-1.3b"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "50 steps of a solver, guidance 3.0, shift 5.0" in out
    assert "Not an autoregressive model" in out
    assert main(["models", "shapes"]) == 0
    assert "yes, it ships with the package" in capsys.readouterr().out


def test_one_card_as_json(capsys, cache):
    assert main(["models", "wan2.1-1.3b", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["negative_prompt"] == CARDS["wan2.1-1.3b"].settings.negative_prompt
    assert (card["on_disk"], card["base_folder"], card["weights_path"]) == ("no", None, None)
    assert f"{BASE}/transformer/config.json" in card["missing"]


def test_names_that_are_not_there(capsys, cache):
    assert main(["models", "selfforcing"]) == 2
    assert capsys.readouterr().err.startswith("arl2 models: There is no model named 'selfforcing'. Did you mean")
    assert main(["download", "causalforcing"]) == 2
    assert "Did you mean 'causal-forcing'" in capsys.readouterr().err
    assert main(["download", "shapes"]) == 2
    assert "ships with the package" in capsys.readouterr().err


def test_download_and_list_without_torch(tmp_path):
    files = {
        "tokenizer/tokenizer_config.json": b"1",
        "tokenizer/tokenizer.json": b"2",
        "tokenizer/spiece.model": b"3",
        "text_encoder/config.json": b"4",
        "text_encoder/model.safetensors": b"5",
        "vae/config.json": b"6",
        "vae/diffusion_pytorch_model.safetensors": b"7",
        "scheduler/scheduler_config.json": b"8",
        "transformer/config.json": b"9",
    }
    students = {"chunkwise/causal_forcing.pt": b"weights"}
    with HubServer({BASE: files, "zhuhz22/Causal-Forcing": students}) as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}

        def arl2(*words: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, "-c", SCRIPT, *words], env={**kept, **own}, capture_output=True, text=True, timeout=120
            )

        done = arl2("download", "causal-forcing")
        assert done.returncode == 0, done.stderr
        base, weights = done.stdout.splitlines()
        assert base.endswith(COMMIT)
        assert weights.endswith("chunkwise/causal_forcing.pt")
        assert done.stderr.startswith("causal-forcing: about 29 GB, Apache-2.0\n")
        assert "zhuhz22/Causal-Forcing: chunkwise/causal_forcing.pt" in done.stderr
        listed = json.loads(arl2("models", "causal-forcing", "--json").stdout)
        assert (listed["on_disk"], listed["base_folder"], listed["weights_path"]) == ("yes", base, weights)
        quiet = arl2("download", "causal-forcing", "--quiet")
        assert (quiet.returncode, quiet.stderr, quiet.stdout) == (0, "", done.stdout)
        absent = arl2("download", "self-forcing", "--quiet")
        assert absent.returncode == 2
        assert absent.stderr.startswith("arl2 download: The Hub has no gdhe17/Self-Forcing (404)")
        assert "Traceback" not in absent.stderr

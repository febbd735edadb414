"""What a command imports, and that a model is the same whichever base classes it has."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import arl2
from arl2.bases import own
from arl2.cli.collector import collect_from_here, without_collector
from arl2.cli.main import main
from pipeline.stand_in import stand_in_folder

PROMPT = "a red circle moves right on navy"
# Seconds each, and nothing that the embedded models use.
LARGE = ("accelerate", "diffusers", "huggingface_hub", "sympy", "torch._dynamo", "torch._inductor", "transformers")
RUN = """
import json, sys
from arl2.cli.main import main
codes = [main(words, alone=True) for words in json.loads(sys.argv[1])]
loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps([codes, loaded]), file=sys.__stderr__)
"""


def run(*commands: list[str], without: tuple[str, ...], folder: Path) -> tuple[list[int], list[str], str]:
    """Exit codes of commands in one new process, which of these modules it has loaded, and what was said."""
    words = [sys.executable, "-c", RUN, json.dumps(commands), json.dumps(without)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    *said, last = done.stderr.splitlines()
    codes, loaded = json.loads(last)
    return codes, loaded, "\n".join(said)


def test_help_and_plain_mistakes_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "there.mp4").touch()
    mistakes = [
        ["generate", PROMPT, "--fraames", "9"],
        ["generate", PROMPT, "--frames", "0"],
        ["generate", " "],
        ["generate", PROMPT, "--output", "there.mp4"],
        ["generate", PROMPT, "--model", "shape-75"],
        ["generate", PROMPT, "--model", "no/such/folder"],
        ["generate", PROMPT, "--image", "no.png"],
        ["generate", PROMPT, "--extend", "no.mp4"],
        ["generate", "--prompts-file", "no.txt", "--output", "videos"],
        ["stream", PROMPT, "--frames", "9", "--script", "no.yaml"],
        ["stream", PROMPT, "--frames", "9", "--model", "shape-75"],
        ["stream", PROMPT, "--frames", "9", "--output", "there.mp4"],
        ["stream", "--frames", "9", "--resume", "no.arl2", "--output", "new.mp4"],
        ["train", "codec", "run", "--settings", "no.json"],
        ["train", "codecs", "run"],
        ["train", "codec", "run", "loop.steps"],
        ["inspect", "no.safetensors"],
        ["export", "shape-75", "--output", "exported"],
        ["models", "shape-75"],
    ]
    codes, loaded, said = run(["--help"], *mistakes, without=("torch", "numpy", *LARGE), folder=tmp_path)
    assert codes == [0] + [2] * len(mistakes)
    assert loaded == []
    assert "Traceback" not in said
    for sentence in (
        "Did you mean '--frames'?",
        "'shapes-75'",
        "There is no 'no.png' (--image)",
        "'no.json' cannot be",
    ):
        assert sentence in said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands write in a process of their own; one of the models lacks a tensor."""
    folder = tmp_path_factory.mktemp("made")
    damaged = stand_in_folder(folder / "damaged") / "codec"
    (damaged / "config.json").write_text((damaged / "config.json").read_text().replace('"depth": 1', '"depth": 2'))
    codes, loaded, said = run(
        ["generate", PROMPT, "--model", "damaged", "--frames", "9", "--output", "damaged.mp4"],
        ["generate", PROMPT, "--frames", "9", "--output", "out.mp4", "--latents", "latents.safetensors"],
        ["stream", PROMPT, "--frames", "9", "--output", "stream.y4m", "--snapshot", "stream.arl2"],
        without=LARGE,
        folder=folder,
    )
    assert codes == [2, 0, 0], said
    assert loaded == []
    (folder / "said").write_text(said)
    return folder


def test_a_command_makes_the_same_latents_as_the_library(made: Path, tmp_path: Path) -> None:
    """One thread in both: sums are then taken in the same order."""
    mine = tmp_path / "latents.safetensors"
    words = ["generate", PROMPT, "--frames", "9", "--output", str(tmp_path / "out.mp4"), "--latents", str(mine)]
    assert main([*words, "--threads", "1"]) == 0
    for name, latents in load_file(made / "latents.safetensors").items():
        assert torch.equal(load_file(mine)[name], latents)


def test_a_snapshot_of_a_command_is_resumed_by_the_library(made: Path) -> None:
    """The hash of the model covers its config: it is the same with both base classes."""
    pipe = arl2.ARL2Pipeline.from_pretrained("shapes-100")
    with pipe.resume(made / "stream.arl2") as stream:
        assert stream.index == 1
        assert next(stream).index == 1


def test_a_damaged_part_is_refused_in_one_sentence(made: Path) -> None:
    assert "is not exactly one GroupCodec" in (made / "said").read_text()
    assert "Traceback" not in (made / "said").read_text()


def test_configs_are_those_of_diffusers() -> None:
    def init(self: object, width: int, rates: tuple[int, ...] = (1, 2), depth: int = 3) -> None:
        """Nothing beyond its arguments."""

    class Own(own.ConfigMixin):
        __init__ = own.register_to_config(init)

    class Theirs(diffusers.ConfigMixin):
        config_name = "config.json"
        __init__ = diffusers.configuration_utils.register_to_config(init)

    for positional, named in (((4,), {}), ((4, [5]), {"depth": 1}), ((), {"width": 4})):
        mine, theirs = Own(*positional, **named).config, Theirs(*positional, **named).config
        assert dict(mine) == {name: value for name, value in theirs.items() if not name.startswith("_")}
        assert mine.width == theirs.width == 4
    with pytest.raises(AttributeError, match="has no setting 'widht'; it has width, rates, depth"):
        _ = Own(4).config.widht


def test_nothing_is_collected_while_a_command_starts() -> None:
    frozen = gc.get_freeze_count()
    collect_from_here()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, frozen)
    with without_collector():
        assert not gc.isenabled()
        collect_from_here()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    assert gc.isenabled()
    gc.unfreeze()

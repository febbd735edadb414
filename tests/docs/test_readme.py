"""The README is a promise: every line of it is pasted, from top to bottom, into one fresh folder, and works.

Commands that would take more than a minute, or load weights of gigabytes, run with ``ARL2_MINIATURE=1``; what a reader
brings (weights, images, lists of prompts) is stood in for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from arl2.cli.miniature import VARIABLE
from arl2.cli.reference_page import page
from arl2.video.reading import read_video
from checkpoints.hub_server import HubServer
from docs.pasted import ROOT, Step, is_long, steps_of, values_of
from docs.stand_ins import make_for

README = (ROOT / "README.md").read_text()
# Runs all steps in one process, so that torch is imported once.
RUNNER = """
import json, os, sys, threading, time
from arl2.cli.main import main
import torch
torch.set_num_threads(1)
def drain(terminal):
    while os.read(terminal, 100_000):
        pass
for step in json.load(open(sys.argv[1])):
    started = time.perf_counter()
    print("$", step["python"] or " ".join(step["words"]), file=sys.stderr, flush=True)
    os.environ.update(step["environment"])
    if step["python"]:
        exec(compile(step["python"], "README.md", "exec"), {"__name__": "__main__"})
    else:
        # A preview needs a terminal; what goes into a pipe, or is redirected, goes into a file.
        own = os.dup(1)
        if "--preview" in step["words"]:
            reader, target = os.openpty()
            threading.Thread(target=drain, args=(reader,), daemon=True).start()
            os.dup2(target, 1)
        elif step["stdout"]:
            target = os.open(step["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
        code = main(step["words"])
        sys.stdout.flush()
        os.dup2(own, 1)
        assert code == 0, (code, step["words"])
    for name in step["environment"]:
        del os.environ[name]
    print(f"# {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
"""


def as_run(step: Step) -> dict[str, object]:
    """A step with the environment it runs in."""
    miniature = not step.python and is_long(step.command)
    return asdict(step) | {"environment": {**step.environment, **({VARIABLE: "1"} if miniature else {})}}


@pytest.mark.timeout(900)
def test_every_line_works_when_pasted(tmp_path: Path) -> None:
    steps = steps_of(README)
    assert sum(bool(step.words) for step in steps) >= 5
    assert any(step.python for step in steps)
    work = tmp_path / "clone"
    work.mkdir()
    for name in ("recipes", "docs"):
        shutil.copytree(ROOT / name, work / name)
    with HubServer(make_for(steps, work)) as hub:
        (tmp_path / "steps.json").write_text(json.dumps([as_run(step) for step in steps]))
        home = tmp_path / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HOME": str(home), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        own["TERM"] = "xterm"
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, str(tmp_path / "steps.json")],
            env={**kept, **own},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=800,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    for step in steps:
        output = step.words and values_of(step.command).get("output")
        if output and Path(str(output)).suffix in (".mp4", ".gif", ".webp"):
            assert len(read_video(work / str(output))) > 0, step.words


def test_a_line_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(AssertionError, match="Of what kind"):
        steps_of("```sh\nsudo reboot\n```\n")
    with pytest.raises(AssertionError, match="extras are"):
        steps_of("```sh\npip install -e '.[trian]'\n```\n")
    with pytest.raises(AssertionError, match="nothing"):
        steps_of("```sh\nmake nothing\n```\n")
    (step,) = steps_of('```sh\nX=1 arl2 stream "a | b" \\\n  --forever -o - | ffplay -  # a comment\n```\n')
    assert step == Step(words=["stream", "a | b", "--forever", "-o", "-"], environment={"X": "1"}, stdout="pipe")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_file_map_names_what_is_there() -> None:
    for listing in re.findall(r"^```\n(.*?)^```$", README, flags=re.S | re.M):
        if "src/arl2/" in listing:
            for room in re.findall(r"^  (\w+)/", listing, flags=re.M):
                assert (ROOT / "src" / "arl2" / room).is_dir(), room


def test_the_reference_of_the_command_line_is_current() -> None:
    shown = (ROOT / "docs/cli.md").read_text()
    assert shown == page(), "run: python -m arl2.cli.reference_page > docs/cli.md"

"""The README's section on real weights, word for word, against tiny stand-ins in exactly the published layouts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arl2.model.registry import CARDS, WAN_BASE
from arl2.video.reading import read_video
from arl2.video.tiny_codec import TinyCodec
from arl2.video.writers import open_video
from checkpoints.hub_server import HubServer
from rollout.published_folders import diffusers_base, hybrid_file, student_file

README = (Path(__file__).parents[2] / "README.md").read_text()
# Runs every command it is given in one process, so that torch is imported once.
SCRIPT = """
import json, sys, warnings
from arl2.cli.main import main
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    code = main(words)
    assert code == 0, (code, words)
"""


def shown() -> list[list[str]]:
    section = README.split("## With the real weights")[1].split("\n## ")[0]
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", section, re.S)
        for line in block.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("arl2 ")]


def small(words: list[str]) -> list[str]:
    """The same command for a picture and a length that a test has time for."""
    if words[0] != "generate":
        return words
    frames = "17" if "--extend" in words else "9"
    kept = list(words)
    if "--frames" in kept:
        kept[kept.index("--frames") + 1] = frames
    elif "--config-path" not in kept:
        kept += ["--frames", frames]
    if "--config-path" in kept:
        kept += ["--num-output-frames", "3"]
    return [*kept, "--height", "32", "--width", "48", "--steps", "1000"]


def stand_ins(folder: Path) -> dict[str, dict[str, bytes]]:
    """Files that the commands name, in the working folder; and the repositories of the Hub."""
    base = diffusers_base(folder / "Wan2.1-T2V-1.3B-Diffusers")
    student_file(folder / "causal_forcing.pt", ema=True)
    hybrid_file(folder / "arl2.pt")
    tiny = TinyCodec(encoder_widths=(4, 4, 4, 4), decoder_widths=(8, 4, 4, 4))
    torch.save(tiny.state_dict(), folder / "taew2_1.pth")
    (folder / "prompts.txt").write_text("a cat runs\na dog jumps\n")
    (folder / "causal_forcing.yaml").write_text(
        "denoising_step_list: [1000, 750, 500, 250]\nwarp_denoising_step: true\nnum_frame_per_block: 3\n"
        "model_kwargs: {timestep_shift: 5.0}\n"
    )
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / "dog.png")
    with open_video(folder / "clip.mp4") as writer:
        writer.write(draw.integers(0, 255, (9, 40, 64, 3), dtype=np.uint8))
    whole = {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    whole["tokenizer/spiece.model"] = b"not read where tokenizer.json is"
    repositories = {WAN_BASE: whole}
    for words in shown():
        if words[0] == "download":
            card = CARDS[words[1]]
            student = student_file(folder / "hub" / f"{card.name}.pt").read_bytes()
            repositories.setdefault(card.weights_repo, {})[card.weights_file] = student
    return repositories


def test_every_command_runs(tmp_path):
    commands = [small(words) for words in shown()]
    assert {words[0] for words in commands} >= {"models", "download", "inspect", "generate"}
    work = tmp_path / "work"
    with HubServer(stand_ins(work)) as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(commands)],
            env={**kept, **own},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "memory on cpu: about" in done.stdout
    assert "without training" in done.stderr  # the converted student of the published words
    for words in commands:
        if "-o" in words and words[words.index("-o") + 1].endswith(".mp4"):
            frames = int(words[words.index("--frames") + 1])
            assert read_video(work / words[words.index("-o") + 1]).shape[0] == frames
    assert len(list((work / "videos").glob("*.mp4"))) == len(list((work / "out").glob("*.mp4"))) == 2

"""What a page's reader brings: weights, images, videos and lists of prompts, tiny and in exactly the published layouts.

Which file a command needs follows from the option that names it, so that a page may name its files as it likes.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arl2.checkpoints import export_checkpoint
from arl2.evaluation.goldens import packaged_goldens
from arl2.model.registry import CARDS, WAN_BASE
from arl2.video.tiny_codec import TinyCodec
from arl2.video.writers import open_video
from docs.pasted import Step, values_of
from pipeline.stand_in import stand_in_pipeline
from rollout.published_folders import diffusers_base, hybrid_file, student_file
from support import tiny_model

_CONFIG = """\
denoising_step_list: [1000, 750, 500, 250]
warp_denoising_step: true
num_frame_per_block: 3
model_kwargs: {timestep_shift: 5.0}
"""
_SCRIPT = """\
- {at: 0:00, prompt: "a red circle moves right"}
- {at: 0:01, prompt: "a blue circle moves up", mode: refresh}
"""


def _image(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _video(path: Path) -> None:
    with open_video(path) as writer:
        writer.write(np.random.default_rng(1).integers(0, 255, (9, 40, 64, 3), dtype=np.uint8))


def _tiny_decoder(path: Path) -> None:
    torch.save(TinyCodec(encoder_widths=(4, 4, 4, 4), decoder_widths=(8, 4, 4, 4)).state_dict(), path)


def _model(path: Path) -> None:
    """A file: an ARL2 checkpoint, or, where its name says so, a student's; a name without extension: a pipeline."""
    if not path.suffix:
        stand_in_pipeline("SSSS").save_pretrained(path)
    elif "forcing" in path.stem:
        student_file(path, ema=True)
    else:
        hybrid_file(path)


def _prompts(path: Path) -> None:
    path.write_text("a red circle moves right\na blue square falls\n")


def _goldens(path: Path) -> None:
    shutil.copytree(packaged_goldens(), path)


MAKERS: dict[str, Callable[[Path], object]] = {
    "model": _model,
    "weights": _model,
    "checkpoint_path": _model,
    "base": diffusers_base,
    "config": lambda path: path.write_text(_CONFIG),
    "config_path": lambda path: path.write_text(_CONFIG),
    "decoder": _tiny_decoder,
    "prompts_file": _prompts,
    "data_path": _prompts,
    "script": lambda path: path.write_text(_SCRIPT),
    "image": _image,
    "extend": _video,
    "goldens": _goldens,
}


def make_for(steps: Iterable[Step], folder: Path) -> dict[str, dict[str, bytes]]:
    """Make what the steps read and no earlier step writes; returns the Hub's repositories, for what they download."""
    repositories: dict[str, dict[str, bytes]] = {}
    written: set[str] = set()
    for step in steps:
        if step.python:
            for name in re.findall(r'"([\w.-]+\.(?:pt|safetensors))"', step.python):
                if not (folder / name).exists():
                    export_checkpoint(tiny_model("HS", block_frames=3, text_len=512), folder / name)
            continue
        values = values_of(step.command)
        for option, value in values.items():
            name = str(value)
            if option == "model" and name in CARDS:
                if step.words[0] == "download":
                    _add_card(repositories, name, folder)
            elif option in MAKERS and name != "tiny" and name not in written and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                MAKERS[option](folder / name)
            if option in ("output", "output_folder", "snapshot"):
                written.add(name)
    return repositories


def _add_card(repositories: dict[str, dict[str, bytes]], name: str, folder: Path) -> None:
    card = CARDS[name]
    if WAN_BASE not in repositories:
        base = diffusers_base(folder.with_name("hub-base"))
        files = {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}
        repositories[WAN_BASE] = {**files, "tokenizer/spiece.model": b"not read where tokenizer.json is"}
    if card.weights_repo is not None and card.weights_file is not None:
        student = student_file(folder.with_name("hub-weights") / f"{name}.pt").read_bytes()
        repositories.setdefault(card.weights_repo, {})[card.weights_file] = student

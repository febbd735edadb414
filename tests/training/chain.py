"""``recipes/shapes.sh`` as tests run it: every stage of it, on the embedded teacher, in miniature."""

import os
import signal
import subprocess
import time
from pathlib import Path

from arl2.training.engine.checkpoint import checkpoints_in
from arl2.training.engine.progress import read_metrics

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 12, 4
_THREADS = os.environ.get("ARL2_TEST_THREADS", "1")
MODELS = "75 100"
STAGES = {"align": "align", "distill": "distill-75", "dmd": "dmd-100"}
_TINY = {"CLIPS": 8, "HIDING_CLIPS": 8, "SHARD_CLIPS": 4, "CLIP_FRAMES": 6, "KNOWN_BLOCKS": 1}
_LONG = {"LONG_CLIPS": 8, "LONG_CLIP_FRAMES": 6}
# Muon orthogonalises in bfloat16, where the last bit of a gradient decides more: one process and two part by 1e-4 in 30
# steps. What is to be equal here is all the rest.
_DISTILL = "evaluation_rollouts=1 loop.optimizer=adamw"
_FEW = {"SENSITIVITY_PROMPTS": 2, "SENSITIVITY_FRAMES": 6, "DISTILL": _DISTILL}
_DMD = (
    "clips=8 opening_clips=8 hiding_clips=8 clip_frames=6 lengths=[3,6] batch_frames=6 "
    "evaluation_clips=1 evaluation_frames=3"
)
_SHORT = ["frames=[6]", "batch_frames=6", "held_out=2", "picture_frames=6"]
_LOOP = {"steps": STEPS, "log_every": 2, "checkpoint_every": EVERY, "evaluate_every": 1000}
_QUIET = {"evaluate_first": "false", "pictures_every": "null"}


def started(folder: Path, python: str, *, processes: int = 1, models: str = MODELS) -> subprocess.Popen[str]:
    """The script, with all its processes in a group of their own."""
    settings = {
        "FOLDER": folder,
        "PROCESSES": processes,
        "PYTHON": python,
        "THREADS": _THREADS,
        **_TINY,
        **_LONG,
        **_FEW,
    }
    settings["MODELS"] = models
    settings["DMD"] = f"latents={folder.parent}/latents {_DMD}"  # encoded once for all runs
    words = [*_SHORT, *(f"loop.{name}={value}" for name, value in {**_LOOP, **_QUIET}.items())]
    said = (folder.parent / f"{folder.name}.log").open("a")
    with said:
        return subprocess.Popen(
            ["bash", str(ROOT / "recipes" / "shapes.sh"), *words],
            env={**os.environ, **{name: str(value) for name, value in settings.items()}},
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
        )


def finished(folder: Path, python: str, *, processes: int = 1, models: str = MODELS, timeout: float = 500) -> str:
    """The script until its end; what it has said, all runs of this folder together.

    Raises:
        AssertionError: it failed; with what it said.
    """
    running = started(folder, python, processes=processes, models=models)
    try:
        code = running.wait(timeout)
    finally:
        kill(running)
    said = (folder.parent / f"{folder.name}.log").read_text()
    assert code == 0, said
    return said


def killed_in(folder: Path, python: str, stage: str, *, models: str = MODELS, timeout: float = 300) -> None:
    """The script until a checkpoint of that stage is there, and then kill -9 to all of it."""
    running = started(folder, python, models=models)
    deadline = time.monotonic() + timeout
    try:
        while not checkpoints_in(folder / STAGES[stage] / "checkpoints"):
            assert running.poll() is None, (folder.parent / f"{folder.name}.log").read_text()
            assert time.monotonic() < deadline, f"no checkpoint of {stage} in {timeout} s"
            time.sleep(0.02)
    finally:
        kill(running)


def kill(running: subprocess.Popen[str]) -> None:
    """Its whole group, at once; nothing where it has ended."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(30)


def losses(folder: Path, stage: str) -> dict[int, float]:
    """Of a run: by step, the mean loss of the steps since the one before."""
    records = read_metrics(folder / STAGES[stage] / "metrics.jsonl")
    return {int(record["step"]): float(record["loss"]) for record in records if "loss" in record}

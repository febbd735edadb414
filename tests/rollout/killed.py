"""What processes do that are about to be killed; a fork server imports this once, model and all."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rollout.streams import PROMPT, small_pipeline, take

# Threads of a pool do not survive a fork, so there is none yet; each child asks for those of its environment.
torch.set_num_threads(1)
PLAN = "HS"
small_pipeline(PLAN)  # forks begin with it


def _threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def save_and_die(path: Path) -> None:
    """Five blocks, a snapshot, and the end in the middle of the sixth."""
    _threads()
    stream = small_pipeline(PLAN).stream(
        PROMPT, seed=3, callback_on_step_end=lambda _, step, __, values: _die_at(values["block"], step)
    )
    take(stream, 5)
    stream.save(path)
    next(stream)


def go_on(path: Path, answer: Connection) -> None:
    """Resume, and tell three blocks."""
    _threads()
    blocks = take(small_pipeline(PLAN).resume(path), 3)
    answer.send([(block.index, block.latents.numpy(), block.video.numpy()) for block in blocks])


def save_for_ever(path: Path, answer: Connection) -> None:
    """One block and a snapshot, which is told; then many more of both."""
    _threads()
    stream = small_pipeline(PLAN).resume(path)
    next(stream)
    stream.save(path)
    answer.send(stream.index)
    while True:
        for _ in range(20):
            stream.save(path)
        next(stream)


def _die_at(block: int, step: int) -> None:
    if (block, step) == (5, 1):
        os.kill(os.getpid(), signal.SIGKILL)

"""kill -9 loses nothing that was saved: not before, not after, and not in the middle of a save."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest

from rollout import killed
from rollout.streams import PROMPT, same_bits, small_pipeline, take, uninterrupted

BLOCKS = 9


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """New processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rollout.killed"])
    with pytest.MonkeyPatch.context() as patch:
        # The server itself is told no paths; what it cannot import it leaves to every process.
        patch.setenv("PYTHONPATH", str(Path(killed.__file__).parents[1]), prepend=os.pathsep)
        yield context


def test_a_killed_stream_goes_on_in_a_new_process_bit_for_bit(processes: ForkServerContext, tmp_path: Path) -> None:
    path = tmp_path / "stream.arl2"
    first = processes.Process(target=killed.save_and_die, args=(path,))
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    receiving, sending = processes.Pipe(duplex=False)
    second = processes.Process(target=killed.go_on, args=(path, sending))
    second.start()
    sending.close()  # or nobody would tell that it died
    resumed = receiving.recv()
    second.join()
    expected = uninterrupted(killed.PLAN, False, BLOCKS)[5:8]
    assert [index for index, _, _ in resumed] == [5, 6, 7]
    for (_, latents, video), block in zip(resumed, expected, strict=True):
        assert np.array_equal(latents, block.latents.numpy())
        assert np.array_equal(video, block.video.numpy())


def test_twenty_kills_in_the_middle_of_saves(processes: ForkServerContext, tmp_path: Path) -> None:
    path, draw = tmp_path / "stream.arl2", random.Random(0)
    pipe = small_pipeline(killed.PLAN)
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 1)
    stream.save(path)
    index = 1
    for _ in range(20):
        receiving, sending = processes.Pipe(duplex=False)
        process = processes.Process(target=killed.save_for_ever, args=(path, sending))
        process.start()
        sending.close()
        told = receiving.recv()
        assert told == index + 1
        time.sleep(0.06 * draw.random())
        process.kill()
        process.join()
        index = pipe.resume(path).index
        assert index >= told
    expected = take(pipe.stream(PROMPT, seed=3), index + 1)
    assert same_bits(next(pipe.resume(path)), expected[index])

"""From the start of a process to its first block of video: imports, loading, the block, each in a fresh process."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from arl2.errors import ConfigError
from arl2.evaluation.bench.options import StartupOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Row
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.files.plain import parse_json

_STAGES = ("torch", "pipeline", "model", "block")
_WORDS = {
    "torch": "import torch",
    "pipeline": "import the pipeline",
    "model": "load the model",
    "block": "first block of video",
}
_LONGEST = 1800  # seconds for a process


class StartupPart(Part[StartupOptions]):
    """See the module."""

    def __init__(self, options: StartupOptions) -> None:
        super().__init__(options)
        self._runs: list[dict[str, Any]] = []

    def gate(self) -> Iterator[Check]:
        # Also the warm-up: files are in the system's cache from now on.
        first, second = self._process()["sha256"], self._process()["sha256"]
        yield Check("two processes give the same video", float(first != second), 0.0)

    def measure(self) -> Iterator[str]:
        for repeat in range(self.options.repeats):
            self._runs.append(self._process())
            yield f"process {repeat + 1} of {self.options.repeats}"

    def rows(self) -> Iterator[Row]:
        if not self._runs:
            return
        for stage in _STAGES:
            yield Row(
                _WORDS[stage], {"seconds": self._timing(stage), "processor_seconds": self._timing(stage, busy=True)}
            )
        everything = [Lap(run["total"], run["total"]) for run in self._runs]
        busy = [Lap(run["busy_total"], run["total"]) for run in self._runs]
        yield Row(
            "process start to first block",
            {"seconds": Timing(tuple(everything)), "processor_seconds": Timing(tuple(busy))},
        )

    def notes(self) -> Iterator[str]:
        yield "seconds: wall clock, from before the process starts. processor_seconds: what the process itself used."

    def _timing(self, stage: str, *, busy: bool = False) -> Timing:
        laps = [Lap(run["busy" if busy else "clock"][stage], run["clock"][stage]) for run in self._runs]
        return Timing(tuple(laps))

    def _process(self) -> dict[str, Any]:
        options = self.options
        asked: dict[str, Any] = {
            "model": options.model,
            "prompt": options.prompt,
            "device": str(self.device),
            "dtype": options.dtype,
        }
        asked["threads"] = options.threads
        started = time.time()  # the one clock that two processes share everywhere
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(f"A process that generates one block failed: {said:.300}")
        found: dict[str, Any] = parse_json(done.stdout.splitlines()[-1])
        clock, found["total"] = found["clock"], found["done"] - started
        # The interpreter's own start is in the first stage.
        clock["torch"] += found["total"] - sum(clock.values())
        found["busy_total"] = sum(found["busy"].values())
        return found


def main(words: list[str]) -> None:
    """One block, in this process; prints JSON."""
    asked = parse_json(" ".join(words))
    marks = [(time.perf_counter(), 0.0)]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    import torch

    if asked["threads"] is not None:
        torch.set_num_threads(asked["threads"])
    mark()
    from arl2.pipeline.options import ModelSource, SamplingOptions
    from arl2.pipeline.source import open_pipeline

    mark()
    source = ModelSource(model=asked["model"], device=asked["device"], dtype=asked["dtype"])
    pipe = open_pipeline(source, SamplingOptions())
    mark()
    with pipe.stream(asked["prompt"], seed=0) as stream:
        video = next(stream).video.detach().float().cpu()
    mark()
    done = time.time()
    steps = list(zip(_STAGES, marks, marks[1:], strict=False))
    digest = hashlib.sha256(video.contiguous().numpy().tobytes()).hexdigest()
    facts = {
        "clock": {stage: after[0] - before[0] for stage, before, after in steps},
        "busy": {stage: after[1] - before[1] for stage, before, after in steps},
        "sha256": digest,
        "done": done,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])

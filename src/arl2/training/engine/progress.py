"""Progress of a run: one live line on a terminal, plain lines elsewhere, and ``metrics.jsonl``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from arl2.errors import ConfigError
from arl2.files.atomic import write_atomically
from arl2.files.plain import json_lines_of
from arl2.files.regular import read_text

_LARGEST = 256_000_000  # bytes: a line a step for a million steps


@dataclass(frozen=True)
class Progress:
    """One log line. ``seconds_left`` is None while it is unknown; ``scores`` come from an evaluation."""

    step: int
    minutes: float
    learning_rate: float
    samples_per_second: float
    seconds_left: float | None
    logs: Mapping[str, float]
    scores: Mapping[str, float]

    def line(self) -> str:
        parts = [f"step {self.step}"]
        parts += [f"{name} {value:.4g}" for name, value in {**self.logs, **self.scores}.items()]
        parts.append(f"{self.samples_per_second:.1f} samples/s")
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        return "  ".join(parts)

    def record(self) -> dict[str, Any]:
        """What ``metrics.jsonl`` keeps."""
        facts = {"step": self.step, "minutes": round(self.minutes, 4), "learning_rate": self.learning_rate}
        return {**facts, "samples_per_second": round(self.samples_per_second, 2), **self.logs, **self.scores}


class Reporter:
    """Shows progress on ``console`` and appends it to ``folder/metrics.jsonl`` (and to a TensorBoard log).

    Without a folder it only shows.
    A resumed run passes the step it continues from: records after it belong to lost work, and are dropped.
    """

    def __init__(self, folder: Path | None, *, console: Console, from_step: int, tensorboard: bool) -> None:
        self._path = folder / "metrics.jsonl" if folder else None
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        # A run that was killed after its last line evaluates once more, and has that line already.
        self._from_step, self._had = from_step, set[str]()
        if self._path:
            kept = _drop_records_after(self._path, from_step)
            self._had = {name for record in kept if record["step"] == from_step for name in record}
        self._file: IO[str] | None = None
        self._tensorboard = _tensorboard_writer(folder, from_step) if folder and tensorboard else None

    def __enter__(self) -> "Reporter":
        if self._path:
            self._file = self._path.open("a", encoding="utf-8")
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def show(self, progress: Progress) -> None:
        """Show and record one line; with scores it stays on the terminal."""
        if self._live:
            self._live.update(Text(progress.line(), overflow="ellipsis", no_wrap=True), refresh=True)
        if progress.scores or not self._live:
            self.say(progress.line())
        recorded = progress.step == self._from_step and self._had.issuperset({"step", *progress.scores})
        if self._file and not recorded:
            self._file.write(json.dumps(progress.record()) + "\n")
            self._file.flush()
        if self._tensorboard:
            for name, value in {**progress.logs, **progress.scores}.items():
                self._tensorboard.add_scalar(name, value, progress.step)

    def say(self, line: str) -> None:
        """A line that stays: plain text, never wrapped."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line truncated by a crash is left out.

    Raises:
        ConfigError: a line that is no JSON object with a ``step``; it is named.
    """
    if not path.exists():
        return []
    complete, _, _ = read_text(path, limit=_LARGEST).rpartition("\n")
    records = []
    for number, record in json_lines_of(complete, path, finite=False):
        if type(record.get("step")) is not int:
            raise ConfigError(f"'{path}', line {number}: this has no step; delete the line.")
        records.append(record)
    return records


def _drop_records_after(path: Path, step: int) -> list[dict[str, Any]]:
    """What is kept. A run that starts over evaluates its start again."""
    kept = [record for record in read_metrics(path) if step and record["step"] <= step]
    if path.exists():
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept


def _tensorboard_writer(folder: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "loop.tensorboard=true needs the package tensorboard: pip install 'arl2[train]', or "
            "leave it out (metrics.jsonl is written in any case)."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=from_step)

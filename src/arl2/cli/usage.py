"""What a command took: time, video frames a second, memory; shown while it works and at the end."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def peak_memory() -> int | None:
    """Most bytes of memory this process has held so far; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kilobytes


def peak_gpu_memory() -> int | None:
    """Most bytes of GPU memory that tensors have taken so far; None if none were there."""
    import torch

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return peak or None


def memory_words() -> str:
    """Peak memory for people, of the GPU too if one was used."""
    peak, on_gpu = peak_memory(), peak_gpu_memory()
    words = "memory unknown" if peak is None else f"{peak / 1e6:,.0f} MB"
    return words if on_gpu is None else f"{words} + {on_gpu / 1e6:,.0f} MB GPU"


class LiveProgress:
    """One live line on a terminal's standard error: what is done, speed, memory, time left. Nothing elsewhere.

    Args:
        what: what is counted, such as "block".
        total: how many there will be; None if there is no end.
        quiet: show nothing.
    """

    def __init__(self, what: str, total: int | None, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._what, self._total = what, total
        ends = total is not None
        self._progress = Progress(
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=24)] if ends else []),
            TextColumn("{task.fields[said]}"),
            *([TimeRemainingColumn(), TextColumn("left")] if ends else []),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, said="")

    def __enter__(self) -> "LiveProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away."""
        self._progress.stop()

    def show(self, done: float | None, said: str = "", *, description: str | None = None) -> None:
        """Set how much of the total is done (None: there is no end), and what stands before and beside the bar."""
        description = description or f"{self._what} {done} of {self._total}"
        self._progress.update(self._task, completed=done, description=description, said=said)

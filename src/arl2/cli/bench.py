"""``arl2 bench PART``: time and memory on this machine, and two results beside each other."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arl2.cli.options import Command
from arl2.cli.threads import use_threads
from arl2.cli.usage import LiveProgress
from arl2.errors import ConfigError
from arl2.evaluation.bench.options import (
    BenchOptions,
    BlockOptions,
    DecodeOptions,
    KernelOptions,
    RolloutOptions,
    SnapshotOptions,
    StartupOptions,
    TrainOptions,
)
from arl2.files.places import check_apart, check_place

if TYPE_CHECKING:
    from arl2.evaluation.bench.part import Part
    from arl2.evaluation.bench.result import Compared, Result

_WIDE = 160  # characters


@dataclass(frozen=True, kw_only=True)
class _Bench(BenchOptions, Command):
    def run(self) -> int:
        """Check, measure, show and write; 1 if a check failed."""
        self._check_outputs()
        use_threads(self.threads)
        from arl2.evaluation.bench.part import run_part

        part = self._part()
        done = 0

        def say(step: str) -> None:
            nonlocal done
            done += 1
            live.show(None, step, description=f"{done} steps")

        with LiveProgress("step", None) as live:
            result = run_part(part, say)
        self._write(part, result)
        if self.as_json:
            print(json.dumps(result.to_mapping()))
        else:
            _show(result)
        if not result.passed and result.checks:
            return 1
        if not result.complete:
            raise KeyboardInterrupt
        return 0

    @property
    def _plot(self) -> Path | None:
        """Where the part that can be drawn is."""
        return getattr(self, "plot", None)

    @abstractmethod
    def _part(self) -> "Part[Any]":
        """What measures; importing it loads torch."""

    def _check_outputs(self) -> None:
        check_apart({"--output": self.output, "--plot": self._plot})
        for path, what, ending in ((self.output, "JSON", ".json"), (self._plot, "PNG", ".png")):
            if path is None:
                continue
            if path.suffix != ending:
                raise ConfigError(f"'{path}' is to be a {what} file; give a name that ends in {ending}.")
            check_place(path, what, overwrite=self.overwrite)

    def _write(self, part: "Part[Any]", result: "Result") -> None:
        from arl2.evaluation.bench.chart import draw_chart
        from arl2.evaluation.bench.machine import machine_words
        from arl2.files.atomic import atomic_file, write_atomically

        if self.output is not None:
            write_atomically(self.output, (json.dumps(result.to_mapping(), indent=1) + "\n").encode())
        if self._plot is not None and result.passed and (panels := part.panels()):
            with atomic_file(self._plot) as path:
                title = f"arl2 bench {result.part}, {result.settings['dtype']}, {machine_words(result.machine)}"
                draw_chart(panels, title=title, across="video frames", path=path)


@dataclass(frozen=True, kw_only=True)
class BenchRollout(RolloutOptions, _Bench):
    """Time and memory of a video against its length: softmax and hybrid layers, full caches and windows, in one run.

    Caches are filled with random keys and values, so that block 1,000 is timed without the 999 before it.
    """

    examples: ClassVar = (
        "arl2 bench rollout --threads 1 -o rollout.json --plot rollout.png",
        "arl2 bench rollout --preset wan-1.3b --device cuda --frames 921 --json",
    )

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.rollout import RolloutPart

        return RolloutPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchBlock(BlockOptions, _Bench):
    """One block, part by part: seconds, operations, kernels, bytes, and shares of what this machine can do at best."""

    examples: ClassVar = (
        "arl2 bench block --preset wan-1.3b --layers 4 --dtype bf16",
        "arl2 bench block --preset wan-1.3b --device cuda --vae --json",
    )

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.block import BlockPart

        return BlockPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchKernels(KernelOptions, _Bench):
    """Each operation against its naive twin and the best library that is installed, forward and with its gradient."""

    examples: ClassVar = ("arl2 bench kernels --threads 1", "arl2 bench kernels --preset wan-1.3b --device cuda --json")

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.kernels import KernelsPart

        return KernelsPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchDecode(DecodeOptions, _Bench):
    """Decode a stream block by block, and the same clip with diffusers."""

    examples: ClassVar = (
        "arl2 bench decode --blocks 4 --threads 1",
        "arl2 bench decode --height 480 --width 832 --dtype bf16 --device cuda --json",
    )

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.decode import DecodePart

        return DecodePart(self)


@dataclass(frozen=True, kw_only=True)
class BenchSnapshot(SnapshotOptions, _Bench):
    """Save, load and fork a live stream, light and exact; the transformer never runs."""

    examples: ClassVar = (
        "arl2 bench snapshot --threads 1",
        "arl2 bench snapshot --preset wan-1.3b --dtype bf16 -o snapshot.json",
    )

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.snapshot import SnapshotPart

        return SnapshotPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchStartup(StartupOptions, _Bench):
    """From the start of a process to its first block of video, in fresh processes."""

    examples: ClassVar = ("arl2 bench startup", "arl2 bench startup --model shapes-75 --threads 1 --repeats 5 --json")

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.startup import StartupPart

        return StartupPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchTrain(TrainOptions, _Bench):
    """An optimisation step of a conversion, on random clips and weights."""

    examples: ClassVar = (
        "arl2 bench train --layers 2 --threads 1",
        "arl2 bench train --preset wan-1.3b --stage align --dtype bf16 --device cuda --json",
    )

    def _part(self) -> "Part[Any]":
        from arl2.evaluation.bench.train import TrainPart

        return TrainPart(self)


@dataclass(frozen=True, kw_only=True)
class BenchCompare(Command):
    """Compare two results of one part: the second over the first, with the range that their runs leave open.

    Attributes:
        first: Result to compare with.
        second: Result to compare.
        across_machines: Accept results of different machines.
        as_json: Print JSON instead of a table.
    """

    positional: ClassVar = ("first", "second")
    examples: ClassVar = ("arl2 bench compare before.json after.json", "arl2 bench compare a.json b.json --json")
    first: Path
    second: Path
    across_machines: bool = False
    as_json: bool = False

    def run(self) -> int:
        """Read both, compare, print."""
        from arl2.evaluation.bench.result import changed_settings, compare, read_result

        first, second = read_result(self.first), read_result(self.second)
        found = compare(first, second, across_machines=self.across_machines)
        changed = changed_settings(first, second)
        if self.as_json:
            facts = {"part": first["part"], "first": str(self.first), "second": str(self.second), "changed": changed}
            print(json.dumps({**facts, "compared": [vars(one) for one in found]}))
            return 0
        _show_compared(found, first["part"])
        for name, (ours, theirs) in changed.items():
            print(f"{name}: {ours} against {theirs}")
        return 0


def _show(result: "Result") -> None:
    """The whole result for people."""
    from arl2.evaluation.bench.machine import machine_words

    console = _console()
    machine = result.machine
    console.print(f"[bold]arl2 bench {result.part}[/], {result.settings['dtype']} on {machine_words(machine)}")
    console.print(
        f"torch {machine['torch']}, commit {machine['commit']}, {machine['date']}, load {machine['load']}; times are "
        f"{machine['time']}",
        soft_wrap=True,
    )
    if result.ceilings:
        rates = result.ceilings
        console.print(
            f"this machine at best: {rates['matrix_product_flops'] / 1e9:,.0f} GFLOP/s in a matrix product, "
            f"{rates['copy_bytes'] / 1e9:,.1f} GB/s in a copy",
            soft_wrap=True,
        )
    failed = [check for check in result.checks if not check.passed]
    for check in failed:
        console.print(f"[bold red]OVER[/] {check.name}: {check.error:.2e}, limit {check.limit:.0e}", soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} of {len(result.checks)} checks failed, so no figures are shown.")
        return
    console.print(f"{len(result.checks)} checks passed")
    for columns, rows in _groups(result):
        table = Table(box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(_heading(column), justify="right", no_wrap=True)
        for name, values in rows:
            table.add_row(escape(name), *(_cell(column, values.get(column)) for column in columns))
        console.print(table)
    for finding in result.findings:
        spread = ""
        if finding.low is not None and finding.high is not None:
            spread = f" ({_figure(finding.low, finding.unit)} to {_figure(finding.high, finding.unit)})"
        console.print(f"{finding.name}: [bold]{_figure(finding.value, finding.unit)}[/]{spread}", soft_wrap=True)
    for note in result.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _console() -> Console:
    """In a file or a pipe as wide as the tables are."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def _groups(result: "Result") -> Iterator[tuple[list[str], list[tuple[str, Any]]]]:
    """Rows that have the same values, as one table each."""
    groups: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    for row in result.rows:
        groups.setdefault(tuple(row.values), []).append((row.name, row.values))
    for columns, rows in groups.items():
        yield list(columns), rows


def _heading(column: str) -> str:
    words = column.split("_")
    units = {"seconds": "s", "bytes": "MB", "flops": "GFLOP", "share": "%", "times": "x"}
    return " ".join([*words[:-1], units[words[-1]]]) if words[-1] in units else " ".join(words)


def _cell(column: str, value: Any) -> str:
    from arl2.evaluation.bench.timing import Timing

    if value is None:
        return "-"
    if isinstance(value, str):
        return escape(value)
    unit = column.rpartition("_")[2]
    if isinstance(value, Timing):
        spread = (max(value.runs) - min(value.runs)) / (2 * value.median) if value.median else 0
        return f"{value.median:.4g} ±{100 * spread:.0f}%"
    scale = {"bytes": 1e6, "flops": 1e9, "share": 0.01}.get(unit, 1)
    shown = value / scale
    return f"{shown:,.0f}" if isinstance(shown, int) or shown >= 1000 or shown.is_integer() else f"{shown:.3g}"


def _figure(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3g}"


def _show_compared(found: "list[Compared]", part: str) -> None:
    table = Table(title=f"arl2 bench {part}: second over first", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "", "first", "second", "ratio", "range"):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in found:
        words = one.value.replace("_", " ")
        spread = f"{one.low:.3f} to {one.high:.3f}"
        table.add_row(escape(one.row), words, f"{one.first:.4g}", f"{one.second:.4g}", f"{one.ratio:.3f}", spread)
    _console().print(table)

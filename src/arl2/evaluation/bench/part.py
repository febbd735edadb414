"""What every part of the benchmark does, and the run that puts it together."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from arl2.evaluation.bench.chart import Panel
from arl2.evaluation.bench.machine import ceilings, machine_facts
from arl2.evaluation.bench.options import BenchOptions
from arl2.evaluation.bench.result import Check, Finding, Result, Row
from arl2.evaluation.bench.timing import Stopwatch
from arl2.pipeline.devices import checked_device, large_model_dtype

Options = TypeVar("Options", bound=BenchOptions)


class Part(ABC, Generic[Options]):
    """One part: what it checks, what it measures, and what its figures are as far as it came.

    Args:
        options: what was asked for.

    Raises:
        ConfigError: a device that is not there, or sizes that cannot be.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = torch.device(checked_device(options.device))
        dtype = options.dtype
        self.dtype: torch.dtype = large_model_dtype(self.device.type) if dtype is None else getattr(torch, dtype)
        self.watch = Stopwatch(self.device)
        self.rates: dict[str, float] = {}

    @abstractmethod
    def gate(self) -> Iterator[Check]:
        """Checks of correctness, before anything is timed."""

    @abstractmethod
    def measure(self) -> Iterator[str]:
        """Measure, and say after each step what was measured; what is there when it is stopped is kept."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """What was measured so far."""

    def findings(self) -> Iterator[Finding]:
        """What follows from the rows so far."""
        yield from ()

    def late_checks(self) -> Iterator[Check]:
        """Checks of what was measured."""
        yield from ()

    def notes(self) -> Iterator[str]:
        """How figures came about."""
        yield from ()

    def panels(self) -> list[Panel]:
        """Of the chart; none if the part has no chart."""
        return []

    @property
    def matrix_rate(self) -> float:
        """Operations a second of this machine's matrix product in the dtype of the part."""
        return self.rates["matrix_product_flops"]


def run_part(part: "Part[Options]", say: Callable[[str], None] = lambda step: None) -> Result:
    """Check, measure, and put together; after Ctrl-C what was measured until then.

    Args:
        part: what to run.
        say: called with every step that is done.

    Returns:
        Without rows and findings if a check failed, for they would say nothing.
    """
    settings = part.options.settings() | {"dtype": str(part.dtype).removeprefix("torch.")}
    result = Result(part.options.part, settings | {"device": str(part.device)}, machine_facts(part.device))
    try:
        for check in part.gate():
            result.checks.append(check)
            say(f"check: {check.name}")
        if not result.passed:
            return result
        part.rates = ceilings(part.watch, part.dtype)
        result.ceilings = part.rates
        for step in part.measure():
            say(step)
        result.complete = True
    except KeyboardInterrupt:
        result.notes.append("Stopped by Ctrl-C: figures are of what was measured until then.")
    if not result.passed:
        return result
    result.checks += part.late_checks()
    if result.passed:
        result.rows, result.findings = list(part.rows()), list(part.findings())
        result.notes += part.notes()
    return result

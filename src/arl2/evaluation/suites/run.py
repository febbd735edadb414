"""Doing what a plan says: unit by unit, each recorded whole, in one process or several; a killed run is continued."""

import base64
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arl2.bases.choice import prefer_own
from arl2.errors import ConfigError, ProcessLostError
from arl2.evaluation.suites.plan import Plan, Unit
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.suite import TRUTH, Measured, Subject, Suite
from arl2.extensions import named
from arl2.files.atomic import write_atomically
from arl2.files.plain import read_json
from arl2.files.records import record_from_mapping
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

PLAN, RECORDS = "plan.json", "records"
_LARGEST = 256_000_000  # bytes of a record: strips of a batch
# Models that a process keeps: teacher and student.
_KEPT = 2


@dataclass(frozen=True)
class _Stored:
    """``Measured`` as a record has it: the strip is text."""

    values: dict[str, float]
    excluded: dict[str, str]
    strip: str
    frames: int
    height: int
    width: int
    fps: float

    def measured(self) -> Measured:
        return Measured(**{**vars(self), "strip": base64.b64decode(self.strip)})


@dataclass(frozen=True)
class _Record:
    unit: str
    models: dict[str, str]
    measured: list[_Stored]


class Worker:
    """What one process does with units; it keeps the models that it has loaded last."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._suite: Suite = open_suite(plan.suite)
        self._pipes: dict[str, tuple[ARL2Pipeline, str]] = {}

    def do(self, unit: Unit) -> None:
        """Measure a unit and write its record.

        Raises:
            Arl2Error: a model that cannot be loaded or evaluated.
        """
        subject = self._plan.subjects[unit.subject]
        hashes: dict[str, str] = {}
        if subject.kind == "videos":
            measured = self._suite.measure_files(list(zip(unit.videos, unit.items, strict=True)))
        elif subject.kind == TRUTH:
            measured = self._suite.measure_truth(unit.items, self._plan.options)
        else:
            measured = self._suite.measure_model(subject, unit.items, self._plan.options, self._load)
            hashes = {label: self._pipes[label][1] for label in sorted(self._pipes)}
        write_record(self._folder, unit, measured, hashes)

    def _load(self, subject: Subject) -> "ARL2Pipeline":
        # Imported here, so that other processes import no more than they need.
        from arl2.pipeline.source import open_pipeline
        from arl2.serving.manifest import model_hash

        if subject.label not in self._pipes:
            while len(self._pipes) >= _KEPT:
                self._pipes.pop(next(iter(self._pipes)))
            device, dtype = self._plan.device, self._plan.dtype
            source = record_from_mapping(ModelSource, {"model": subject.name, "device": device, "dtype": dtype})
            sampling = replace(subject.sampling, num_frames=self._plan.options.num_frames)
            pipe = open_pipeline(source, sampling, batch=max(len(unit.items) for unit in self._plan.units))
            pipe.set_progress_bar_config(disable=True)
            text = self._plan.prompt_text
            if text is not None and not isinstance(pipe.text, named(text)):
                raise ConfigError(
                    f"'{subject.label}' needs prompts of yours, as the installed ones are not for it: give "
                    "--prompts-file FILE."
                )
            self._pipes[subject.label] = (pipe, model_hash(pipe))
        self._pipes[subject.label] = self._pipes.pop(subject.label)  # the last used is the last to go
        return self._pipes[subject.label][0]


def run_plan(
    plan: Plan, folder: Path, *, processes: int, threads: int = 1, on_unit: Callable[[int], None] | None = None
) -> None:
    """Do all units that have no record yet.

    Args:
        plan: what to do; ``plan.json`` of the folder is its own.
        folder: of the records.
        processes: that work at the same time.
        threads: of each of them.
        on_unit: called with the number of units done.

    Raises:
        Arl2Error: what a unit raised; those done stay done.
        ProcessLostError: a process was killed, for lack of memory perhaps.
    """
    missing = [unit for unit in plan.units if not record_path(folder, unit).is_file()]
    done = len(plan.units) - len(missing)
    if on_unit is not None:
        on_unit(done)
    units = _alone(plan, folder, missing) if processes == 1 else _together(plan, folder, missing, processes, threads)
    for _ in units:
        done += 1
        if on_unit is not None:
            on_unit(done)


def read_records(plan: Plan, folder: Path) -> tuple[list[list[Measured]], list[str | None]]:
    """What was measured, by unit; and the hash of each subject's model, None for what is none.

    Raises:
        CheckpointError: a record that cannot be read.
        ConfigError: a model that changed between the runs of one evaluation.
    """
    found: list[list[Measured]] = []
    hashes: dict[str, str] = {}
    for unit in plan.units:
        path = record_path(folder, unit)
        record = record_from_mapping(_Record, read_json(path, limit=_LARGEST), where=str(path))
        for label, own in record.models.items():
            if hashes.setdefault(label, own) != own:
                raise ConfigError(
                    f"The weights of '{label}' changed while it was evaluated; run the command with --overwrite."
                )
        found.append([one.measured() for one in record.measured])
    return found, [hashes.get(subject.label) for subject in plan.subjects]


def record_path(folder: Path, unit: Unit) -> Path:
    """Of a unit's record."""
    return folder / RECORDS / f"{unit.name}.json"


def write_record(folder: Path, unit: Unit, measured: Sequence[Measured], hashes: dict[str, str]) -> None:
    """Write what was measured of a unit, whole or not at all."""
    content = {
        "unit": unit.name,
        "models": hashes,
        "measured": [{**asdict(one), "strip": base64.b64encode(one.strip).decode()} for one in map(_finite, measured)],
    }
    path = record_path(folder, unit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content).encode())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); make room, then run it again.") from error


def _finite(measured: Measured) -> Measured:
    """The same, a value that is no number among the reasons."""
    broken = sorted(name for name, value in measured.values.items() if not math.isfinite(value))
    values = {name: float(value) for name, value in measured.values.items() if name not in broken}
    return replace(measured, values=values, excluded={**measured.excluded, **dict.fromkeys(broken, "no finite value")})


def _alone(plan: Plan, folder: Path, units: Sequence[Unit]) -> Iterator[Unit]:
    worker = Worker(plan, folder)
    for unit in units:
        worker.do(unit)
        yield unit


def _together(plan: Plan, folder: Path, units: Sequence[Unit], processes: int, threads: int) -> Iterator[Unit]:
    with ProcessPoolExecutor(
        max_workers=processes,
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(plan, folder, threads),
    ) as pool:
        futures = {pool.submit(_do, unit): unit for unit in units}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise ProcessLostError(
                "A process of the evaluation was killed, for lack of memory perhaps. Re-run the command to resume, "
                "with fewer --processes or a smaller --batch."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: list[Worker] = []


def _begin(plan: Plan, folder: Path, threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the first one ends the work, others complete their unit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    prefer_own()  # they save no model
    _worker[:] = [Worker(plan, folder)]


def _do(unit: Unit) -> None:
    _worker[0].do(unit)

"""One evaluation from its plan to its results, in a folder that a killed run left and the next one continues."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from arl2.errors import ConfigError
from arl2.evaluation.suites.plan import Plan
from arl2.evaluation.suites.run import PLAN, RECORDS, run_plan
from arl2.evaluation.suites.summary import Results, summarize
from arl2.files.atomic import write_atomically
from arl2.files.locks import locked_folder, writer_of
from arl2.files.plain import read_json

# What ``arl2.evaluation.report.writing`` writes.
OUTPUTS = RESULTS, PAGE, TABLE = "results.json", "report.html", "report.md"
_LARGEST = 256_000_000  # bytes of a plan


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation, finished or not."""
    return (folder / PLAN).is_file()


def evaluate(
    plan: Plan,
    folder: Path,
    *,
    processes: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    on_unit: Callable[[int], None] | None = None,
) -> Results:
    """Do what is left of a plan, and sum it up.

    Args:
        plan: what to do.
        folder: where records are kept; one that holds a part of the same plan is continued.
        processes, threads: processes at the same time, and CPU threads of each.
        overwrite: an evaluation by another plan gives way.
        on_unit: called with the number of units done.

    Raises:
        ConfigError: the folder holds another evaluation, or another process works on it.
        Arl2Error: what the work raised; run it again to resume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(folder):
            _begin(plan, folder, overwrite=overwrite)
            run_plan(plan, folder, processes=processes, threads=threads, on_unit=on_unit)
            return summarize(plan, folder)
    except BlockingIOError as error:
        raise ConfigError(
            f"'{folder}' is being written by another process ({writer_of(folder)}); wait for it, or choose another "
            "name."
        ) from error


def _begin(plan: Plan, folder: Path, *, overwrite: bool) -> None:
    if is_evaluation(folder):
        if read_json(folder / PLAN, limit=_LARGEST).get("fingerprint") == plan.fingerprint:
            return
        if not overwrite:
            raise ConfigError(
                f"'{folder}' holds another evaluation, or one of other models, videos or options, or by an arl2 "
                "with other metrics; choose another folder, or add --overwrite."
            )
    # Of another plan: its results first, its name last, so that a kill leaves it unfinished and not a mixture.
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    if (folder / RECORDS).is_dir():
        shutil.rmtree(folder / RECORDS)
    content = {"fingerprint": plan.fingerprint, **plan.to_mapping()}
    write_atomically(folder / PLAN, (json.dumps(content, indent=1) + "\n").encode())

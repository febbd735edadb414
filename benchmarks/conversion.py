"""Converted models beside their teacher: what each keeps of prompts and of what it no longer sees, and what it costs.

    python benchmarks/conversion.py --recipe runs/recipe -o runs/conversion --threads 1
    python benchmarks/conversion.py --model teacher=shapes-teacher --model "window 9=shapes-teacher@9" \\
        --model mine=runs/mine/export --quick mine -o runs/conversion

``--recipe`` takes the rows from a folder of ``recipes/shapes.sh``: the teacher, the teacher with window 9, and of every
distill-MODEL there: converted but untrained, after stage 1, after stage 2; then all DMD and all means. Rows named by
``--quick`` are measured on prompts alone. Every cell is measured once and kept in the output folder under the model's
hash, so the same words go on after a stop, rows can be added, and the same words in a second terminal share the work.
Writes result.json, result.md and occlusion.png there. Times are those of this machine while they are measured: run
--cells stream when it is quiet.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arl2 import ARL2Pipeline
from arl2.files.atomic import write_atomically
from arl2.files.records import record_from_mapping
from arl2.shapes.evaluation.score import score_truth
from arl2.shapes.evaluator.scoring import Share
from arl2.streams.model_hash import parts_hash
from arl2.streams.request import Window
from arl2.training.conversion.distill import DistillConfig
from arl2.training.conversion.students import export_student, load_teacher, make_student, student_settings
from arl2.training.conversion.trainable import trained_parameters
from arl2.training.engine.progress import read_metrics
from conversion_measures import measure_memory, measure_prompts, measure_stream, plain_score
from line_chart import line_chart
from measured import Measurements

VIDEO_FRAMES, SHORT, LONG = 81, 81, 921
CELLS = ("prompts", "occlusion", "stream")
ATTRIBUTES = ("colour", "shape", "motion", "wall")
TRUTH = "true renders"


@dataclass(frozen=True)
class Row:
    """A model to measure.

    Attributes:
        label: in the table.
        model: embedded name or folder.
        window: instead of its own.
        stage: that it has been trained in, 0 for none.
        minutes: of training; None where no run says.
    """

    label: str
    model: str
    window: Window = "settings"
    stage: int = 0
    minutes: float | None = None


def row_of(words: str) -> Row:
    """``label=model`` or ``label=model@window``; an export inside a run's folder knows its stage and minutes."""
    label, separator, rest = words.partition("=")
    if not separator or not label or not rest:
        raise argparse.ArgumentTypeError(f"{words!r} came; give label=FOLDER, or label=FOLDER@window")
    model, window = rest, "settings"
    if found := re.fullmatch(r"(.+)@(\d+|full)", rest):
        model, window = found.groups()
    chosen: Window = "settings" if window == "settings" else None if window == "full" else int(window)
    run = Path(model).parent
    if Path(model).name != "export" or not (run / "config.json").exists():
        return Row(label, model, chosen)
    stage = 2 if json.loads((run / "config.json").read_text()).keys() & {"aligned", "start_from"} else 1
    return Row(label, model, chosen, stage, minutes_of(run))


def minutes_of(run: Path) -> float | None:
    """Of training, the stages before included; None without a log."""
    records = read_metrics(run / "metrics.jsonl")
    if not records:
        return None
    config = json.loads((run / "config.json").read_text())
    start = config.get("aligned") or config.get("start_from")
    before = minutes_of(Path(start).parent) if start and (Path(start).parent / "config.json").exists() else None
    return float(records[-1]["minutes"]) + (before or 0.0)


def rows_of_recipe(folder: Path, kept: Measurements) -> list[Row]:
    """The teacher; of every conversion untrained, after stage 1 and after stage 2; all runs of DMD, and all means.

    What continues from an export has no row of its own before stage 2.
    """
    runs = _runs_of(folder, "distill")
    if not runs:
        raise SystemExit(f"'{folder}' holds no distill-MODEL/export; run recipes/shapes.sh first.")
    rows: list[Row] = []
    for name, run in runs.items():
        config = record_from_mapping(DistillConfig, json.loads((run / "config.json").read_text()))
        if not rows:
            rows = [Row("teacher", config.teacher), Row("teacher, window 9", config.teacher, 9)]
        specs = () if config.start_from else (replace(config.student(), aligned=None), config.student())
        for stage, spec in enumerate(specs):
            made = kept.folder.parent / "models" / f"{name}-stage-{stage}"
            weights = [run / "export", *([Path(config.aligned)] if config.aligned else [])]
            facts = {"student": str(spec), "place": str(made), "weights": [_digest(one) for one in weights]}
            kept.make(facts, partial(_write_student, config, spec, made))
            minutes = minutes_of(Path(config.aligned).parent) if stage and config.aligned else 0.0
            label = f"{_title(name)}, {'stage 1' if stage else 'untrained'}"
            rows.append(Row(label, str(made), stage=stage, minutes=minutes))
        rows.append(Row(f"{_title(name)}, stage 2", str(run / "export"), stage=2, minutes=minutes_of(run)))
    for kind, said in (("dmd", "DMD"), ("mean", "mean")):
        for name, run in _runs_of(folder, kind).items():
            rows.append(Row(f"{_title(name)}, {said}", str(run / "export"), stage=2, minutes=minutes_of(run)))
    return rows


def _runs_of(folder: Path, kind: str) -> dict[str, Path]:
    """What has an export, by the name after its kind, and in the order of its share."""
    runs = {run.name.removeprefix(f"{kind}-"): run for run in folder.glob(f"{kind}-*")}
    made = {name: run for name, run in runs.items() if (run / "export" / "generation.json").exists()}
    return dict(sorted(made.items(), key=lambda run: (int(re.sub(r"\D.*", "", run[0]) or 0), run[0])))


def _title(name: str) -> str:
    share, _, rest = name.partition("-")
    return f"{share} %{' ' + rest if rest else ''}"


def _write_student(config: DistillConfig, spec: Any, folder: Path) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    teacher = load_teacher(config.teacher, device="cpu")
    student = make_student(teacher, spec)
    export_student(student, teacher, folder, settings=student_settings(teacher, student))
    return {"folder": str(folder)}


def _digest(pipeline: Path) -> str:
    files = sorted((pipeline / "transformer").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One measurement: all it depends on, and how to make it."""

    row: str
    name: str
    facts: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


def cells_of(row: Row, pipe: ARL2Pipeline, kinds: Sequence[str], given: argparse.Namespace) -> list[Cell]:
    """Of one row, in the order of ``kinds``."""
    window = row.window
    model = {"model": parts_hash(pipe.transformer, pipe.codec), "settings": pipe.settings.to_mapping()}
    cells: list[Cell] = []

    def add(name: str, measure: Callable[..., dict[str, Any]], **how: Any) -> None:
        facts = {"cell": measure.__name__, **model, "window": window, **how}
        plain = json.loads(json.dumps(facts))
        cells.append(Cell(row.label, name, plain, partial(measure, pipe, window=window, **how)))

    for kind in kinds:
        if kind == "prompts":
            add("prompts", measure_prompts, prompts=given.prompts, seed=given.seed, num_frames=VIDEO_FRAMES)
        elif kind == "occlusion":
            for hidden in given.hidden:
                add(f"occlusion {hidden}", measure_memory, hidden=hidden, clips=given.clips, seed=given.seed)
        else:
            add("stream", measure_stream, video_frames=(SHORT, LONG), repeats=given.repeats)
    return cells


def truth_cell(given: argparse.Namespace) -> Cell:
    """What the oracle reads in true renders of the same prompts."""
    how = {"prompts": given.prompts, "seed": given.seed, "num_frames": VIDEO_FRAMES}
    return Cell(TRUTH, "prompts", {"cell": "truth", **how}, lambda: plain_score(score_truth(**how)))


def facts_of(row: Row, pipe: ARL2Pipeline) -> dict[str, Any]:
    """What need not be measured: plan, window, the trained share of the pretrained numbers, minutes."""
    sizes = {name: parameter.numel() for name, parameter in pipe.transformer.named_parameters()}
    new = sum(parameter.numel() for parameter in trained_parameters(pipe.transformer, 2).values())
    training = trained_parameters(pipe.transformer, 2 if row.stage == 2 else 1) if row.stage else {}
    trained = sum(parameter.numel() for parameter in training.values())
    return {
        "model": row.model,
        "plan": str(pipe.transformer.config.layer_plan),
        "window": pipe.settings.window if row.window == "settings" else row.window,
        "trained_parameters": trained,
        "trained_share": trained / (sum(sizes.values()) - new),
        "minutes": row.minutes,
    }


def measure_all(cells: Sequence[Cell], kept: Measurements) -> None:
    """Those nobody is at first, then those another process has not finished."""
    for wait in (False, True):
        for number, cell in enumerate(cells, 1):
            if kept.known(cell.facts) is None:
                started, busy = time.perf_counter(), time.process_time()
                kept.make(cell.facts, cell.measure, wait=wait)
                seconds = time.perf_counter() - started
                print(
                    f"[{number} of {len(cells)}] {cell.row}, {cell.name}: {seconds:.0f} s, "
                    f"{time.process_time() - busy:.0f} s of CPU",
                    file=sys.stderr,
                    flush=True,
                )


def table(result: dict[str, Any], hidden: Sequence[int]) -> str:
    """Two tables: as asked and costs; colour kept through occlusions."""
    head = [
        "model",
        "plan",
        *ATTRIBUTES,
        "flicker",
        "MB at 81",
        "at 921",
        "ms a block at 81",
        "at 921",
        "trained",
        "min",
    ]
    lines = [_line(head), _line(["---"] * len(head))]
    for label, row in result["rows"].items():
        prompts, stream = row.get("prompts"), row.get("stream")
        shares = [_share(prompts["shares"][name]) if prompts else "" for name in ATTRIBUTES]
        flicker = f"{prompts['flicker']:.4f}" if prompts and prompts["flicker"] is not None else ""
        frames = (str(SHORT), str(LONG))
        sizes = [f"{stream[n]['memory_bytes'] / 1e6:.2f}" if stream else "" for n in frames]
        times = [f"{stream[n]['block_seconds'] * 1e3:.0f}" if stream else "" for n in frames]
        trained = f"{row['trained_share']:.1%}" if "trained_share" in row else ""
        minutes = f"{row['minutes']:.0f}" if row.get("minutes") is not None else ""
        lines.append(_line([label, row.get("plan", ""), *shares, flicker, *sizes, *times, trained, minutes]))
    kept = [_line(["colour kept, video frames hidden", *map(str, hidden)]), _line(["---"] * (len(hidden) + 1))]
    for label, points in _curves(result).items():
        shares = [_share(points[str(number)]["colour"]) if str(number) in points else "" for number in hidden]
        kept.append(_line([label, *shares]))
    return "\n".join([*lines, "", *kept]) + "\n"


def _curves(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    curves = {label: row["occlusion"] for label, row in result["rows"].items() if row.get("occlusion")}
    truth: dict[str, Any] = {}
    for points in curves.values():
        truth |= {number: point["truth"] for number, point in points.items()}
    models = {label: {number: point["model"] for number, point in points.items()} for label, points in curves.items()}
    return {**models, TRUTH: truth} if models else {}


def _share(values: dict[str, Any]) -> str:
    if values["share"] is None:
        return "unknown"
    return f"{values['share']:.0%} ({values['low'] * 100:.0f} to {values['high'] * 100:.0f})"


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def write(result: dict[str, Any], hidden: Sequence[int], folder: Path) -> None:
    """All three files; the table is printed too."""
    write_atomically(folder / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(folder / "result.md", table(result, hidden).encode())
    curves = _curves(result)
    if curves:
        lines = {
            label: {int(number): Share.from_mapping(point["colour"]) for number, point in points.items()}
            for label, points in curves.items()
        }
        title = "Colour kept through an occlusion, 95 % intervals"
        line_chart(lines, title=title, across="video frames hidden", path=folder / "occlusion.png")
    print(table(result, hidden))


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is missing, write what is known; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, metavar="FOLDER", help="of recipes/shapes.sh: its rows")
    parser.add_argument("--model", type=row_of, action="append", default=[], metavar="LABEL=FOLDER[@WINDOW]")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--quick", nargs="*", metavar="LABEL", help="rows of prompts alone; without labels all rows")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="leave the other rows out")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="what to measure (default: all)")
    parser.add_argument("--prompts", type=int, default=200, help="of 81 video frames (default: 200)")
    parser.add_argument("--clips", type=int, default=60, help="of each occlusion (default: 60)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[6, 12, 24, 36, 48], help="video frames")
    parser.add_argument("--repeats", type=int, default=3, help="streams that are timed (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(words)
    if given.threads:
        torch.set_num_threads(given.threads)
    kept = Measurements(given.output / "cells")
    rows = [*(rows_of_recipe(given.recipe, kept) if given.recipe else []), *given.model]
    labels = [row.label for row in rows]
    unknown = sorted({*(given.quick or []), *(given.only or [])} - set(labels))
    if not rows or unknown or len(set(labels)) < len(labels):
        parser.error(f"rows are {labels}; give one or more, each with a label of its own ({unknown} are not there)")
    rows = [row for row in rows if given.only is None or row.label in given.only]

    plain: dict[str, dict[str, Any]] = {}
    cells = [truth_cell(given)] if "prompts" in given.cells else []
    for row in rows:
        pipe = ARL2Pipeline.from_pretrained(row.model)
        pipe.set_progress_bar_config(disable=True)
        quick = given.quick is not None and (not given.quick or row.label in given.quick)
        plain[row.label] = facts_of(row, pipe)
        cells += cells_of(row, pipe, [kind for kind in given.cells if kind == "prompts" or not quick], given)
    # Prompts of all rows first: the table is worth reading early.
    cells.sort(key=lambda cell: cell.name != "prompts")
    measure_all(cells, kept)
    for cell in cells:
        found, at = kept.known(cell.facts), plain.setdefault(cell.row, {})
        kind, _, number = cell.name.partition(" ")
        if number:
            at.setdefault(kind, {})[number] = found
        else:
            at[kind] = found
    facts = {"benchmark": "conversion", "prompts": given.prompts, "clips": given.clips, "seed": given.seed}
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result = {**facts, **machine, "rows": plain}
    write(result, given.hidden, given.output)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

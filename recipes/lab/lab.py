"""The laboratory: one row per memory design, trained from one teacher with one budget, measured in the shapes world.

    python recipes/lab/lab.py recipes/lab/rows.toml -o runs/lab --threads 1
    python recipes/lab/lab.py recipes/lab/rows.toml -o runs/lab --rows published,windowed --seeds 1
    python recipes/lab/lab.py recipes/lab/rows.toml -o runs/lab --table

Every row is aligned (stage 1) and distilled (stage 2) once per seed, into FOLDER/ROW/seed-N. Re-run the same command to
resume: training continues from its checkpoints, and what was measured is kept in FOLDER/measured under everything that
it depends on. FOLDER/table.md and table.json hold what is known so far. docs/lab.md says what the columns mean, and by
which rule the table is read.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from arl2 import ARL2Pipeline
from arl2.attention.plan import letters
from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.errors import Arl2Error, ConfigError, suggestion
from arl2.evaluation.suites.bootstrap import estimate
from arl2.files.atomic import write_atomically
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.shapes.evaluator.scoring import Share
from arl2.streams.model_hash import parts_hash
from arl2.training.conversion.align import AlignConfig, AlignTask
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.distill import DistillConfig, DistillTask
from arl2.training.engine.config import read_config_values
from arl2.training.engine.loop import RunResult, train
from arl2.training.engine.progress import read_metrics
from conversion_measures import measure_memory, measure_prompts
from measured import Measurements

# One budget for all rows: none of these may differ.
BUDGET = (
    *("loop", "teacher", "clips", "any_clips", "batch_frames"),
    *("held_out", "teacher_window", "plan", "aligned"),
)
FRAMES_PER_LATENT = 4  # video frames


@dataclass(frozen=True)
class Measures:
    """What is measured of every trained row.

    Attributes:
        prompts: number of fixed prompts; 0 for none.
        hidden: lengths of occlusions, in video frames.
        occlusions: clips of each length.
        seed: of prompts, clips and noise: added to the row's own.
        video_frames: of a video for a prompt.
    """

    prompts: int = 64
    hidden: tuple[int, ...] = (24, 48, 96)
    occlusions: int = 60
    seed: int = 100
    video_frames: int = 81


@dataclass(frozen=True)
class Row:
    """A variant.

    Attributes:
        name: of its folder and line.
        plan: one letter a layer; empty for the teacher itself, which is measured and not trained.
        window: latent frames that windows show, the block included.
        state_form: as in the config of a transformer.
        own_block_share, window_lengths: as in the settings of training.
        aligned: name of the row whose stage 1 this one takes, trained with its settings if it has not been yet; empty:
            its own.
        align, distill: other settings of the stages, but not those of the budget.
    """

    name: str
    plan: str = ""
    window: int = 9
    state_form: Mapping[str, Any] | None = None
    own_block_share: float = 0.0
    window_lengths: tuple[int, ...] = ()
    aligned: str = ""
    align: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in (self.align, self.distill):
            for name in stage:
                if name in BUDGET:
                    raise ConfigError(
                        f"Row '{self.name}' sets {name}, which is of the budget that all rows share; leave it out."
                    )


@dataclass(frozen=True)
class Lab:
    """A file of rows.

    Attributes:
        seeds: of training; every row runs with each.
        align, distill: settings of the two stages, for all rows.
        measures: of every row.
        row: the rows.
    """

    align: Mapping[str, Any]
    distill: Mapping[str, Any]
    row: tuple[Row, ...]
    seeds: tuple[int, ...] = (1, 2)
    measures: Measures = Measures()

    def __post_init__(self) -> None:
        names = [row.name for row in self.row]
        if len(set(names)) < len(names) or not all(name.replace("-", "").isalnum() for name in names):
            raise ConfigError(f"Rows need different names of letters, digits and hyphens; got {', '.join(names)}.")
        for row in self.row:
            if row.aligned and (row.align or self.chosen([row.aligned])[0].aligned):
                raise ConfigError(
                    f"Row '{row.name}' takes the stage 1 of '{row.aligned}': give it no settings of its own for that "
                    "stage, and name a row that trains one."
                )

    def chosen(self, names: Sequence[str]) -> list[Row]:
        """The rows of these names; all if none is given."""
        known = {row.name: row for row in self.row}
        for name in names:
            if name not in known:
                raise ConfigError(f"There is no row '{name}'. {suggestion(name, known)}")
        return [known[name] for name in names] if names else list(self.row)


def read_lab(path: Path) -> Lab:
    """The rows of a ``.toml`` or ``.json`` file.

    Raises:
        ConfigError: a file that cannot be read, an unknown setting, or a row that changes the budget.
    """
    return record_from_mapping(Lab, read_config_values(path), where=str(path))


def configs_of(lab: Lab, row: Row, seed: int, folder: Path) -> tuple[AlignConfig, DistillConfig]:
    """Settings of both stages of a row."""
    first = lab.chosen([row.aligned])[0] if row.aligned else row
    aligned = str(_stage_1(row, folder) / "export")
    made = []
    for kind, of, shared, changes, more in (
        (AlignConfig, first, lab.align, first.align, {}),
        (DistillConfig, row, lab.distill, row.distill, {"aligned": aligned, "student_window": row.window}),
    ):
        own = {"plan": of.plan, "state_form": of.state_form}
        own |= {"own_block_share": of.own_block_share, "window_lengths": list(of.window_lengths)}
        config = record_from_mapping(kind, {**shared, **own, **changes, **more}, where=f"row '{row.name}'")
        made.append(replace(config, loop=replace(config.loop, seed=seed)))
    return made[0], made[1]


def _stage_1(row: Row, folder: Path) -> Path:
    """Where the run of stage 1 lies that this row takes; ``folder`` is LAB/ROW/seed-N."""
    return (folder.parents[1] / row.aligned / folder.name if row.aligned else folder) / "align"


def _runs_of(row: Row, folder: Path) -> tuple[Path, Path]:
    return _stage_1(row, folder), folder / "distill"


def train_row(
    lab: Lab, row: Row, seed: int, folder: Path, *, clips: TrainingClips | None = None
) -> tuple[RunResult, RunResult]:
    """Both stages; what has been trained before is not trained again.

    Args:
        clips: instead of those of the settings.
    """
    align, distill = configs_of(lab, row, seed, folder)
    console = Console(stderr=True)
    console.print(f"{row.name}, seed {seed}: stage 1")
    first = train(
        AlignTask(align, clips=clips),
        align.loop,
        _stage_1(row, folder),
        run_config=record_to_mapping(align),
        console=console,
    )
    console.print(f"{row.name}, seed {seed}: stage 2")
    second = train(
        DistillTask(distill, clips=clips),
        distill.loop,
        folder / "distill",
        run_config=record_to_mapping(distill),
        console=console,
    )
    return first, second


def model_of(lab: Lab, row: Row, folder: Path) -> str:
    """Where a row's model lies, trained or not."""
    return str(folder / "distill" / "export") if row.plan else str(lab.distill["teacher"])


def measure_row(lab: Lab, row: Row, seed: int, folder: Path, kept: Measurements) -> None:
    """Prompts and occlusions of a trained row, each once."""
    pipe = ARL2Pipeline.from_pretrained(model_of(lab, row, folder))
    for facts, measure in _measures(lab, row, seed, pipe):
        kept.make(facts, measure)


def _measures(lab: Lab, row: Row, seed: int, pipe: ARL2Pipeline) -> list[tuple[dict[str, Any], Any]]:
    given, cells = lab.measures, []
    common = {"seed": given.seed + seed, "window": row.window}
    facts = {"model": parts_hash(pipe.transformer, pipe.codec), "settings": pipe.settings.to_mapping(), **common}
    if given.prompts:
        how = {"prompts": given.prompts, "num_frames": given.video_frames}
        named = {"cell": "prompts", "verdicts": "each", **facts, **how}
        cells.append((named, lambda how=how: measure_prompts(pipe, **common, **how)))
    for hidden in given.hidden:
        how = {"hidden": hidden, "clips": given.occlusions}
        cells.append(({"cell": "occlusion", **facts, **how}, lambda how=how: measure_memory(pipe, **common, **how)))
    return [(json.loads(json.dumps(facts)), measure) for facts, measure in cells]


def result_of(lab: Lab, row: Row, seeds: Sequence[int], out: Path, kept: Measurements) -> dict[str, Any] | None:
    """What is known of a row over its seeds; None if of no seed everything is known."""
    errors: dict[str, list[float]] = {}
    hits: dict[str, list[Share]] = {}
    right: dict[str, list[bool | None]] = {}
    minutes, done, memory, parameters = [], [], 0, 0
    for seed in seeds:
        folder = out / row.name / f"seed-{seed}"
        if row.plan and not _is_finished(folder, lab, row, seed):
            continue
        pipe = ARL2Pipeline.from_pretrained(model_of(lab, row, folder))
        cells = [(facts, kept.known(facts)) for facts, _ in _measures(lab, row, seed, pipe)]
        if any(result is None for _, result in cells):
            continue
        done.append(seed)
        memory, parameters = _memory_bytes(pipe, row, lab.measures), pipe.transformer.num_parameters()
        for facts, result in cells:
            assert result is not None
            if facts["cell"] == "prompts":
                hits.setdefault("all", []).append(Share.from_mapping(result["shares"]["all"]))
                right[str(seed)] = result["right"]
            else:
                kept_colour = Share.from_mapping(result["model"]["colour"])
                hits.setdefault(f"{facts['hidden']} hidden", []).append(kept_colour)
        if row.plan:
            scores = _last_scores(folder / "distill")
            names = {
                "flow error": "held_out_error",
                "hidden": "own_block_held_out_error",
                "rollout": "rollout_distance",
            }
            for name, key in names.items():
                if key in scores:
                    errors.setdefault(name, []).append(scores[key])
            runs = _runs_of(row, folder)
            minutes.append(sum(float(read_metrics(run / "metrics.jsonl")[-1]["minutes"]) for run in runs))
    if not done:
        return None
    return {
        "row": row.name,
        "plan": row.plan or "teacher",
        "window": row.window,
        "seeds": done,
        "errors": {
            name: {"mean": sum(x) / len(x), "lowest": min(x), "highest": max(x), "each": x}
            for name, x in errors.items()
        },
        "shares": {
            name: {
                **Share(sum(one.hits for one in x), sum(one.of for one in x)).to_mapping(),
                "each": [one.value for one in x],
            }
            for name, x in hits.items()
        },
        "right": right,
        "memory_bytes": memory,
        "parameters": parameters,
        "minutes": sum(minutes) / len(minutes) if minutes else 0.0,
    }


def _is_finished(folder: Path, lab: Lab, row: Row, seed: int) -> bool:
    for run, config in zip(_runs_of(row, folder), configs_of(lab, row, seed, folder), strict=True):
        records = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        if not records or records[-1]["step"] < (config.loop.steps or 0):
            return False
    return (folder / "distill" / "export" / "generation.json").exists()


def _last_scores(run: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        found |= {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
    return found


def _memory_bytes(pipe: ARL2Pipeline, row: Row, measures: Measures) -> int:
    """Of one stream whose window is full."""
    size = {"height": pipe.settings.height // LATENT_STRIDE, "width": pipe.settings.width // LATENT_STRIDE}
    memory = pipe.transformer.allocate_memory(batch=1, window=row.window, sink=0, **size)
    frames = pipe.plan_frames(measures.video_frames).latent_frames
    block = pipe.transformer.config.block_frames
    memory.fill_random(frames // block * block)
    return sum(tensor.nbytes for tensor in memory.views().values())


def against(
    row: Mapping[str, Sequence[bool | None]], other: Mapping[str, Sequence[bool | None]]
) -> dict[str, Any] | None:
    """Difference of a row's share of right prompts from another's, prompt by prompt; None without a common prompt.

    Args:
        row, other: by seed, whether each prompt's video is right; a prompt that either cannot be judged on is left
            out. Prompts of different seeds are different prompts.
    """
    pairs = [pair for seed, own in row.items() if seed in other for pair in zip(own, other[seed], strict=True)]
    differences = [float(one) - float(two) for one, two in pairs if one is not None and two is not None]
    if not differences:
        return None
    found = estimate(differences)
    return {"mean": found.mean, "low": found.low, "high": found.high, "prompts": found.prompts}


def with_differences(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results with what trained rows differ by, in ``all``.

    ``against_teacher``: from the teacher with the same window, if that was measured. ``against_best``: from the trained
    row with the best share. ``admitted``: whether that is not significant.
    """
    teachers = {one["window"]: one["right"] for one in results if one["plan"] == "teacher"}
    trained = [one for one in results if one["plan"] != "teacher" and "all" in one["shares"]]
    best = max(trained, key=lambda one: one["shares"]["all"]["share"] or 0.0, default=None)
    found = [dict(one) for one in results]
    for one in found:
        if one["plan"] != "teacher" and best is not None:
            one["against_teacher"] = against(one["right"], teachers.get(one["window"], {}))
            one["against_best"] = from_best = against(one["right"], best["right"])
            one["admitted"] = from_best is not None and (from_best["high"] or 0.0) >= 0
    return found


def chosen_by_rule(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The admitted rows that count as equal to the one that remembers most, the chosen one first (docs/lab.md)."""
    lengths = {int(name.split()[0]) for one in results for name in one["shares"] if name.endswith(" hidden")}
    if not lengths:
        return []
    longest = f"{max(lengths)} hidden"
    # A window that shows what the longest occlusion hides needs no memory.
    is_memory = {one["row"]: FRAMES_PER_LATENT * one["window"] < max(lengths) for one in results}
    admitted = [one for one in results if one.get("admitted") and is_memory[one["row"]]]
    if not admitted:
        return []
    best = max((one["shares"][longest] for one in admitted), key=lambda share: share["share"])
    equal = [one for one in admitted if one["shares"][longest]["high"] >= best["low"]]

    def order(one: Mapping[str, Any]) -> tuple[float, ...]:
        youngest = max(letters().index(letter) for letter in one["plan"])  # known kinds, the oldest first
        return one["memory_bytes"], one["parameters"], youngest, -one["shares"][longest]["share"]

    return [one["row"] for one in sorted(equal, key=order)]


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line a row, intervals in brackets."""
    errors = [name for name in ("flow error", "hidden", "rollout") if any(name in one["errors"] for one in results)]
    shares = list(dict.fromkeys(name for one in results for name in one["shares"]))
    is_paired = any(one.get("against_teacher") for one in results)
    paired = ["all, against teacher", "all, against best", "admitted"] if is_paired else []
    header = ["row", "plan", "seeds", *errors, *shares, *paired, "memory, kB", "minutes"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for one in results:
        cells = [one["row"], one["plan"], str(len(one["seeds"]))]
        for name in errors:
            x = one["errors"].get(name)
            cells.append("-" if x is None else f"{x['mean']:.4f} ({x['lowest']:.4f} to {x['highest']:.4f})")
        for name in shares:
            x = one["shares"].get(name)
            is_none = x is None or x["share"] is None
            cells.append("-" if is_none else f"{x['share']:.0%} ({x['low']:.0%} to {x['high']:.0%})")
        if is_paired:
            cells += [_paired_cell(one.get(name)) for name in ("against_teacher", "against_best")]
            cells.append({None: "-", True: "yes", False: "no"}[one.get("admitted")])
        lines.append("| " + " | ".join([*cells, f"{one['memory_bytes'] / 1e3:.0f}", f"{one['minutes']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def _paired_cell(x: Mapping[str, Any] | None) -> str:
    if x is None:
        return "-"
    interval = "" if x["low"] is None else f" ({100 * x['low']:+.1f} to {100 * x['high']:+.1f})"
    return f"{100 * x['mean']:+.1f}{interval}"


def write_table(lab: Lab, rows: Sequence[Row], seeds: Sequence[int], out: Path, kept: Measurements) -> str:
    """``table.json`` and ``table.md`` of what is known; the latter is given back.

    Differences from a teacher need its row among ``rows``.
    """
    found = [result_of(lab, row, seeds, out, kept) for row in rows]
    results = with_differences([one for one in found if one is not None])
    chosen, *equal = chosen_by_rule(results) or [None]
    text = table_of(results)
    if chosen is not None:
        text += f"\nBy the rule: `{chosen}`" + (f" (equal to it: {', '.join(equal)})" if equal else "") + ".\n"
    plain = {
        "lab": record_to_mapping(lab),
        "rows": results,
        "chosen": chosen,
        "equal": equal,
        "missing": [r.name for r, x in zip(rows, found, strict=True) if x is None],
    }
    write_atomically(out / "table.json", (json.dumps(plain, indent=1) + "\n").encode())
    write_atomically(out / "table.md", text.encode())
    return text


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path, metavar="ROWS.toml")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/lab"), help="folder (default: runs/lab)")
    parser.add_argument("--rows", default="", help="names with commas between (default: all)")
    parser.add_argument("--seeds", default="", help="numbers with commas between (default: those of the file)")
    parser.add_argument("--table", action="store_true", help="print what is known and train nothing")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    return parser.parse_args(words)


def names_in(text: str) -> list[str]:
    """Of a list with commas."""
    return [name for name in text.split(",") if name]


def main(words: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    given = arguments(words)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        lab = read_lab(given.rows_file)
        rows = lab.chosen(names_in(given.rows))
        try:
            seeds = [int(seed) for seed in names_in(given.seeds)] or list(lab.seeds)
        except ValueError:
            raise ConfigError(f"--seeds takes whole numbers with commas between; got '{given.seeds}'.") from None
        kept = Measurements(given.output / "measured")
        for seed in seeds if not given.table else ():
            for row in rows:
                folder = given.output / row.name / f"seed-{seed}"
                if row.plan and "interrupted" in {one.reason for one in train_row(lab, row, seed, folder)}:
                    print("Stopped; the same command goes on.", file=sys.stderr)
                    return 130
                measure_row(lab, row, seed, folder, kept)
                write_table(lab, rows, seeds, given.output, kept)
        print(write_table(lab, rows, seeds, given.output, kept), end="")
    except Arl2Error as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

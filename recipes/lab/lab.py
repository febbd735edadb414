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

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from verdict import chosen_by_rule, spread_between_seeds, table_of, with_differences, with_spread

from arl2 import ARL2Pipeline
from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.errors import Arl2Error, ConfigError, suggestion
from arl2.files.atomic import write_atomically
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.shapes.evaluator.scoring import Share
from arl2.streams.model_hash import parts_hash
from arl2.training.conversion.align import AlignConfig, AlignTask
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.distill import DistillConfig, DistillTask
from arl2.training.engine.config import accepted_changes, read_config_values
from arl2.training.engine.loop import RunResult, train
from arl2.training.engine.progress import read_metrics
from conversion_measures import measure_memory, measure_prompts
from measured import Measurements

# One budget for all rows: none of these may differ.
BUDGET = (
    *("loop", "teacher", "clips", "any_clips", "batch_frames"),
    *("held_out", "teacher_window", "plan", "aligned"),
)


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
            # The clips held out are as long as those trained on: errors of other lengths cannot be compared.
            is_usual = max(configs_of(lab, row, seed, folder)[1].frames) == max(lab.distill["frames"])
            scores = _last_scores(folder / "distill") if is_usual else {}
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
                "counts": [[one.hits, one.of] for one in x],
            }
            for name, x in hits.items()
        },
        "right": right,
        "memory_bytes": memory,
        "parameters": parameters,
        "minutes": sum(minutes) / len(minutes) if minutes else 0.0,
    }


def _is_finished(folder: Path, lab: Lab, row: Row, seed: int) -> bool:
    """Whether both stages ran to their end; refuses runs of other settings than the row has now."""
    for run, config in zip(_runs_of(row, folder), configs_of(lab, row, seed, folder), strict=True):
        records = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        if not records or records[-1]["step"] < (config.loop.steps or 0):
            return False
        before = read_config_values(run / "config.json")
        try:
            accepted_changes(before, record_to_mapping(config), run, accept_all=False)
        except ConfigError as error:
            raise ConfigError(
                f"The run in '{run}' was made with other settings than row '{row.name}' has now; delete it, or give "
                "another -o."
            ) from error
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


def write_table(lab: Lab, out: Path, kept: Measurements) -> str:
    """``table.json`` and ``table.md`` of what is known of all rows and seeds; the latter is given back."""
    found = [result_of(lab, row, lab.seeds, out, kept) for row in lab.row]
    results = [one for one in found if one is not None]
    spread = spread_between_seeds(results)
    results = with_differences(with_spread(results))
    chosen, *equal = chosen_by_rule(results) or [None]
    text = table_of(results)
    if any(factor > 1 for factor in spread.values()):
        times = ", ".join(f"{name} {factor:.1f}" for name, factor in spread.items())
        text += f"\nVariance between seeds, as a multiple of what chance makes; intervals allow for it: {times}.\n"
    if chosen is not None:
        text += f"\nBy the rule: `{chosen}`" + (f" (equal to it: {', '.join(equal)})" if equal else "") + ".\n"
    plain = {
        "lab": record_to_mapping(lab),
        "rows": results,
        "spread": spread,
        "chosen": chosen,
        "equal": equal,
        "missing": [r.name for r, x in zip(lab.row, found, strict=True) if x is None],
    }
    write_atomically(out / "table.json", (json.dumps(plain, indent=1) + "\n").encode())
    write_atomically(out / "table.md", text.encode())
    return text


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path, metavar="ROWS.toml")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/lab"), help="folder (default: runs/lab)")
    parser.add_argument("--rows", default="", help="to train, names with commas between (default: all)")
    parser.add_argument(
        "--seeds", default="", help="to train, of those of the file, with commas between (default: all)"
    )
    parser.add_argument("--table", action="store_true", help="print what is known of all rows and train nothing")
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
        if set(seeds) - set(lab.seeds):
            raise ConfigError(f"--seeds {given.seeds}: the file's seeds are {', '.join(map(str, lab.seeds))}.")
        kept = Measurements(given.output / "measured")
        table = write_table(lab, given.output, kept)  # refuses runs of other settings before anything is trained
        for seed in seeds if not given.table else ():
            for row in rows:
                folder = given.output / row.name / f"seed-{seed}"
                if row.plan and "interrupted" in {one.reason for one in train_row(lab, row, seed, folder)}:
                    print("Stopped; re-run the same command to resume.", file=sys.stderr)
                    return 130
                measure_row(lab, row, seed, folder, kept)
                table = write_table(lab, given.output, kept)
        print(table, end="")
    except Arl2Error as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

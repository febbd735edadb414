"""``arl2 train PART``: train a part of a model, or resume a run that was stopped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from arl2.cli.options import Command
from arl2.cli.threads import use_threads
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.training.conversion.cluster import Cluster

_OTHER_STAGE = {"align": "distill", "distill": "align"}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes on GPUs, with --dry-run (align and distill).

    Attributes:
        gpus: GPUs that share the batches of a step.
        gpu_memory: Memory of one GPU in GB (default: 80, an H100's).
        gpu_tflops: Peak of one GPU in TFLOP/s, dense bfloat16 (default: 989, an H100's).
        utilisation: Share of the peak that a run reaches (default: 0.4).
        other_stage: Settings file of the other stage, whose GPU-hours are added.
        teacher_clips: Number of the teacher's rollouts, whose GPU-hours are added.
    """

    gpus: int | None = None
    gpu_memory: float | None = None
    gpu_tflops: float | None = None
    utilisation: float | None = None
    other_stage: Path | None = None
    teacher_clips: int | None = None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]

    def cluster(self) -> "Cluster":
        """The GPUs."""
        from arl2.training.conversion.cluster import Cluster

        numbers = {"memory": self.gpu_memory, "tflops": self.gpu_tflops, "utilisation": self.utilisation}
        assert self.gpus is not None
        return Cluster(self.gpus, **{name: value for name, value in numbers.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a part of a model. Re-run the command to resume a run that was stopped.

    - codec: pixels to latents and back, on rendered clips
    - teacher: the transformer and its text part, on latents of a trained codec (codec=FOLDER)
    - dmd: a student that matches in few steps what a teacher samples in many (teacher=, start_from=, clips=FOLDER)
    - reward-model: the model that chooses among first blocks (drawn=FOLDER)
    - align: stage 1, hybrid layers that match the softmax layers in their place (clips=FOLDER)
    - distill: stage 2, the whole hybrid model (aligned=FOLDER, clips=FOLDER)

    Under torchrun (torchrun -m arl2.cli.main train ...) several processes share the work.

    Attributes:
        part: What to train.
        folder: Folder of the run: settings, log, checkpoints, export.
        overrides: Settings as name=value, such as loop.seed=1; of a list, values with commas: clips=runs/a,runs/b.
        settings: Settings file, .json or .toml.
        max_minutes: Minutes of training, the same as loop.max_minutes=M; encoding clips before it is not counted.
        device: Where to run: auto, cpu, cuda, cuda:1, xpu, mps (default: auto, a GPU if there is one).
        threads: CPU threads (default: all cores).
        accept_changes: Resume although settings differ from the run's.
        dry_run: Print every setting (of a conversion also what trains, memory and operations), and do nothing.
        as_json: Print the result, or the dry run, as JSON.
    """

    positional: ClassVar = ("part", "folder", "overrides")
    examples: ClassVar = (
        "arl2 train align runs/align teacher=mine clips=runs/clips --settings recipes/shapes-align.json",
        "arl2 train distill runs/distill --settings recipes/wan-distill-22.json --dry-run --gpus 64",
    )
    part: str
    folder: Path
    overrides: tuple[str, ...] = ()
    settings: Path | None = None
    max_minutes: float | None = None
    device: str = "auto"
    threads: int | None = None
    accept_changes: bool = False
    dry_run: bool = False
    as_json: bool = False
    estimate: Estimate = field(default_factory=Estimate)

    def __post_init__(self) -> None:
        given = self.estimate.given
        if given and self.part not in _OTHER_STAGE:
            raise ConfigError(f"{given[0]} goes with align and distill; leave it out.")
        if given and not self.dry_run:
            raise ConfigError(f"{given[0]} goes with --dry-run; add it.")
        if given and self.estimate.gpus is None:
            raise ConfigError(f"{given[0]} goes with --gpus N; add it.")

    def run(self) -> int:
        """Train, and say where the result is; 130 if it was interrupted."""
        overrides = list(self.overrides)
        if self.max_minutes is not None:
            overrides.append(f"loop.max_minutes={self.max_minutes}")
        _check_words(self.part, self.settings, overrides)

        from arl2.pipeline.devices import checked_device
        from arl2.training.engine.start import resolved_settings, start_run

        use_threads(self.threads)
        if self.dry_run:
            print(self._shown(resolved_settings(self.part, self.folder, settings=self.settings, overrides=overrides)))
            return 0
        result = start_run(
            self.part,
            self.folder,
            settings=self.settings,
            overrides=overrides,
            accept_changes=self.accept_changes,
            device=checked_device(self.device),
            console=Console(stderr=True),
        )
        if self.as_json:
            print(json.dumps(asdict(result), default=str))
        else:
            print(
                f"{result.reason} after {result.step} steps, {result.minutes:.1f} minutes; "
                f"checkpoint {result.checkpoint}, export {result.export}"
            )
        return 130 if result.reason == "interrupted" else 0

    def _shown(self, config: Any) -> str:
        """A dry run, for people or for programs."""
        from arl2.files.records import record_to_mapping
        from arl2.training.conversion.dry_run import Sketch, dry_run
        from arl2.training.engine.start import resolved_settings

        estimate, other = self.estimate, None
        cluster = None if estimate.gpus is None else estimate.cluster()
        if estimate.other_stage is not None:
            other = resolved_settings(_OTHER_STAGE[self.part], None, settings=estimate.other_stage)
        text = dry_run(config, cluster, other_stage=other, teacher_clips=estimate.teacher_clips)
        if not self.as_json:
            return text
        facts: dict[str, Any] = {"settings": record_to_mapping(config)}
        if self.part in _OTHER_STAGE:
            sketch = Sketch.of(config)
            facts |= {"plan": sketch.student.config.layer_plan, "batch": asdict(sketch.step())}
            if cluster is not None:
                costs = sketch.on(cluster)
                facts["gpus"] = {**asdict(costs), "gpu_hours": costs.gpu_hours}
        return json.dumps(facts, default=str)


def _check_words(part: str, settings: Path | None, overrides: Sequence[str]) -> None:
    """Refuse what can be refused before torch is imported: the part, the file of settings, words that set nothing."""
    from arl2.training.engine.config import read_config_values, with_overrides
    from arl2.training.engine.registry import find_task

    find_task(part)
    with_overrides({} if settings is None else read_config_values(settings), overrides)

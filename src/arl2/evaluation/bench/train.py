"""An optimisation step of each stage of a conversion, by the real task and loop, on random clips and weights."""

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from arl2.attention.memory import MemoryGeometry
from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.errors import ConfigError
from arl2.evaluation.bench.gate import KERNEL_LIMITS, streaming_check
from arl2.evaluation.bench.kernels import checks_of
from arl2.evaluation.bench.models import ModelSize, hybrid_plan, random_model
from arl2.evaluation.bench.operations import operations
from arl2.evaluation.bench.options import TrainOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Row, Value
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.files.atomic import write_atomically
from arl2.geometry import token_grid
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.align import AlignConfig, AlignTask
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.distill import DistillConfig, DistillTask
from arl2.training.conversion.estimate import StepEstimate, estimate_step
from arl2.training.conversion.students import load_teacher
from arl2.training.conversion.trainable import parameter_table
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.task import Batch, Compute, Loss


class RandomClips:
    """Two clips of random latents and prompts: one to train on, and one to be held out."""

    def __init__(self, latent_shape: tuple[int, int, int, int], words: int, text_width: int) -> None:
        self.latent_shape, self.words, self.text_width = latent_shape, words, text_width

    def __len__(self) -> int:
        return 2

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        """Clips by number, each from a generator of its own."""
        draws = [torch.Generator().manual_seed(i) for i in indices]
        latents = torch.stack([torch.randn(self.latent_shape, generator=draw) for draw in draws])
        text = torch.stack([torch.randn(self.words, self.text_width, generator=draw) for draw in draws])
        return latents, text, [f"clip {i}" for i in indices]


@dataclass
class _Step:
    """Of one stage."""

    estimate: StepEstimate
    trained_parameters: int
    laps: list[Lap] = field(default_factory=list)
    loss: float | None = None
    gradient_norm: float | None = None
    peak_bytes: int | None = None


class TrainPart(Part[TrainOptions]):
    """See the module."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options)
        if self.dtype is torch.float16:
            raise ConfigError("Training computes in float32 or bfloat16; got float16, give --dtype bf16.")
        self.size = ModelSize.of(options)
        self.plan = hybrid_plan(self.size.layers, options.hybrid_share)
        if "H" not in self.plan:
            raise ConfigError(
                f"With {self.size.layers} layers a share of {options.hybrid_share:g} makes none hybrid; give more."
            )
        self.stages = ("align", "distill") if options.stage == "both" else (options.stage,)
        self._steps: dict[str, _Step] = {}

    def gate(self) -> Iterator[Check]:
        sizes = {"frames": 2, "rows": 5, "columns": 9, "heads": 2, "head_dim": 32}
        for operation in operations(**sizes, dtype=self.dtype, device=self.device):
            if operation.trained:
                yield from checks_of(operation, KERNEL_LIMITS[self.dtype])
        yield streaming_check("HS", self.dtype, self.device)

    def measure(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            self._write_teacher(Path(folder) / "teacher")
            for stage in self.stages:
                self._run(stage, Path(folder))
                if len(self._steps[stage].laps) < self.options.repeats:
                    raise KeyboardInterrupt  # the loop took it, saved and stopped
                yield f"{stage}: {self.options.repeats} steps"

    def rows(self) -> Iterator[Row]:
        for stage, step in self._steps.items():
            values: dict[str, Value] = {"loss": step.loss, "gradient_norm": step.gradient_norm}
            if step.laps:
                seconds = Timing(tuple(step.laps))
                values["step_seconds"] = seconds
                values["product_share"] = step.estimate.flops / seconds.median / self.matrix_rate
            values |= {
                "tokens": step.estimate.tokens,
                "flops": step.estimate.flops,
                "estimated_bytes": step.estimate.memory_bytes,
                "trained_parameters": step.trained_parameters,
            }
            if step.peak_bytes is not None:
                values["peak_bytes"] = step.peak_bytes
            yield Row(stage, values)

    def notes(self) -> Iterator[str]:
        yield (
            f"Plan {self.plan}, one clip of two blocks beside its clean copy; float32 masters, activations computed "
            "again in the backward pass. A step is from one loss to the next; flops and estimated_bytes are estimates."
        )

    @property
    def _compute(self) -> Compute:
        return "bfloat16" if self.dtype is torch.bfloat16 else "float32"

    def _write_teacher(self, folder: Path) -> None:
        """A softmax model with random weights: all that a step reads of a pipeline's folder."""
        model = random_model(self.size.config("S" * self.size.layers), self.dtype, "cpu")
        model.save_pretrained(folder / "transformer")
        height, width = LATENT_STRIDE * self.size.height, LATENT_STRIDE * self.size.width
        settings = GenerationSettings(height=height, width=width)
        write_atomically(folder / "generation.json", json.dumps(settings.to_mapping()).encode())

    def _run(self, stage: str, folder: Path) -> None:
        task, loop = self._task(stage, folder / "teacher")
        step = self._steps[stage] = _Step(self._estimate(stage, task), sum(p.numel() for p in task.trained.values()))
        begun: list[Lap] = []
        loss = task.loss

        def timed(batch: Batch) -> Loss:
            begun.append(self.watch.now())
            # A step ends where the next begins, so the last one is not timed; the first is a warm-up.
            step.laps = [after.since(before) for before, after in itertools.pairwise(begun[1:])]
            return loss(batch)

        # Steps alone are measured: no scores after them and no export.
        task.loss, task.evaluate, task.export = timed, dict, lambda folder: None  # type: ignore[method-assign]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        train(task, loop, folder / stage, run_config={}, console=Console(quiet=True))
        records = [one for one in read_metrics(folder / stage / "metrics.jsonl") if "loss" in one]
        if records:
            step.loss, step.gradient_norm = records[-1]["loss"], records[-1]["gradient_norm"]
        if self.device.type == "cuda":
            step.peak_bytes = torch.cuda.max_memory_allocated(self.device)

    def _task(self, stage: str, teacher: Path) -> tuple[AlignTask | DistillTask, LoopConfig]:
        sizes = load_teacher(teacher, device="meta").model
        frames = 2 * sizes.config.block_frames
        shape = (sizes.config.in_channels, frames, self.size.height, self.size.width)
        random = RandomClips(shape, sizes.config.text_len, sizes.config.text_dim)
        clips = TrainingClips([cast(Any, random)], held_out=1, model=sizes, device=self.device)
        steps = self.options.repeats + 2
        loop = LoopConfig(steps=steps, warmup_steps=0, compute=self._compute, log_every=1, keep_checkpoints=1)
        shared: dict[str, Any] = {
            "loop": loop,
            "teacher": str(teacher),
            "plan": self.plan,
            "frames": (frames,),
            "batch_frames": frames,
            "held_out": 1,
            "activation_checkpointing": True,
        }
        if stage == "align":
            return AlignTask(AlignConfig(**shared), device=self.device, clips=clips), loop
        return DistillTask(DistillConfig(**shared, on_policy_share=0.0), device=self.device, clips=clips), loop

    def _estimate(self, stage: str, task: AlignTask | DistillTask) -> StepEstimate:
        config = task.student.config
        grid = token_grid(self.size.height, self.size.width, tuple(config.patch_size))
        return estimate_step(
            task.teacher.model.config,
            config,
            parameter_table(task.student, 1 if stage == "align" else 2),
            MemoryGeometry(1, grid.rows, grid.columns, config.block_frames),
            frames=2 * config.block_frames,
            first_block_frames=None,
            checkpointing=True,
            layers_alone=stage == "align",
            compute=self._compute,
        )

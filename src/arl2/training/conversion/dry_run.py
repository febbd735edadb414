"""``--dry-run``: what a run would be, without data, weights or steps."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arl2.attention.memory import MemoryGeometry
from arl2.errors import ConfigError
from arl2.files.records import record_to_mapping
from arl2.geometry import token_grid
from arl2.model.cost import clip_flops, memory_bytes, rollout_flops
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.cluster import (
    Cluster,
    LayerSizes,
    RunCosts,
    batches_of_gpu,
    beside_the_paper,
    gradient_traffic,
    memory_of_gpu,
    weight_traffic,
)
from arl2.training.conversion.distill import DistillConfig
from arl2.training.conversion.estimate import WEIGHT, StepEstimate, estimate_step
from arl2.training.conversion.students import Teacher, load_teacher, make_student
from arl2.training.conversion.task import ConversionConfig
from arl2.training.conversion.trainable import ParameterTable, parameter_table
from arl2.video.codec import SPATIAL_FACTOR


def dry_run(
    config: Any,
    cluster: Cluster | None = None,
    *,
    other_stage: ConversionConfig | None = None,
    teacher_clips: int | None = None,
) -> str:
    """Every setting of a run; of a conversion also what trains and what a step takes, here or on a cluster.

    Args:
        config: of the run.
        cluster: also estimate memory, time and GPU-hours on this.
        other_stage: settings of the conversion's other stage, whose GPU-hours are added.
        teacher_clips: rollouts of the teacher to train on, whose GPU-hours are added.

    Raises:
        CheckpointError, ConfigError, GeometryError: a teacher, a plan or lengths that cannot be; a cluster for what is
            no conversion; batches that GPUs cannot share evenly.
    """
    settings = json.dumps(record_to_mapping(config), indent=1)
    if not isinstance(config, ConversionConfig):
        if cluster is not None:
            raise ConfigError("What a run takes on GPUs is estimated for align and distill only; leave --gpus out.")
        return settings
    sketch = Sketch.of(config)
    parts = [settings, sketch.text()]
    if cluster is not None:
        costs = sketch.on(cluster)
        hours = {f"stage {config.stage}": costs.gpu_hours}
        missing = []
        if other_stage is None:
            missing.append("the other stage (--other-stage)")
        else:
            if other_stage.stage == config.stage:
                raise ConfigError(f"Both settings are of stage {config.stage}; give those of the other one.")
            hours[f"stage {other_stage.stage}"] = Sketch.of(other_stage).on(cluster).gpu_hours
        if teacher_clips is None:
            missing.append("the teacher's clips (--teacher-clips)")
        else:
            hours[f"{teacher_clips:,} clips"] = teacher_clips * cluster.hours(sketch.teacher_clip_flops())
        parts += [costs.text(), beside_the_paper(hours, missing=missing)]
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Sketch:
    """A stage of a conversion, without weights: the models on the meta device, and one batch."""

    config: ConversionConfig
    teacher: Teacher
    student: CausalWanTransformer3DModel
    table: ParameterTable
    geometry: MemoryGeometry

    @classmethod
    def of(cls, config: ConversionConfig) -> "Sketch":
        """From the teacher's sizes alone; the batch is the longest there is."""
        teacher = load_teacher(config.teacher, device=torch.device("meta"), window=config.teacher_window)
        student = make_student(teacher, config.student())
        settings, frames = teacher.settings, max(config.frames)
        grid = token_grid(
            settings.height // SPATIAL_FACTOR, settings.width // SPATIAL_FACTOR, tuple(teacher.model.config.patch_size)
        )
        clips = max(1, config.batch_frames // frames)
        geometry = MemoryGeometry(clips, grid.rows, grid.columns, student.config.block_frames)
        return cls(config, teacher, student, parameter_table(student, config.stage), geometry)

    @property
    def frames(self) -> int:
        """Latent frames of the longest clip."""
        return max(self.config.frames)

    def step(self, *, checkpointing: bool | None = None) -> StepEstimate:
        """One batch; with activation checkpointing as the settings say, unless given."""
        config, beside = self.config, None
        if isinstance(config, DistillConfig) and config.memory_weight:
            beside = {**self.teacher.model.config, "window": self.student.config.window}
        return estimate_step(
            self.teacher.model.config,
            self.student.config,
            self.table,
            self.geometry,
            frames=self.frames,
            first_block_frames=self.teacher.settings.first_block_frames,
            checkpointing=self.config.activation_checkpointing if checkpointing is None else checkpointing,
            layers_alone=self.config.stage == 1,
            compute=self.config.loop.compute,
            beside=beside,
        )

    def text(self) -> str:
        """The parameter table, and operations and memory of the batch, in one process."""
        lines = [
            f"plan {self.student.config.layer_plan}, trained in stage {self.config.stage}",
            self.table.text(),
            "",
            self.step().text(),
        ]
        batches = self.config.loop.batches_per_step
        if batches > 1:
            lines.append(f"a step: {batches} such batches, shared out over the processes")
        return "\n".join(lines)

    def on(self, cluster: Cluster) -> RunCosts:
        """The whole run on a cluster; raises ``ConfigError`` for batches that cannot be shared out evenly."""
        loop, gpus = self.config.loop, cluster.gpus
        batches, step = batches_of_gpu(loop, gpus), self.step()
        own_flops, stream_bytes = self._own_rollouts()
        layers = self.student.layers
        assert isinstance(layers, nn.ModuleList)
        return RunCosts(
            cluster=cluster,
            memory=memory_of_gpu(
                step,
                self.table,
                LayerSizes.of(self.student, layers),
                gpus=gpus,
                sharding=loop.sharding,
                stream_bytes=stream_bytes,
            ),
            kept_whole=self.step(checkpointing=False).activation_bytes,
            batch_flops=step.flops + own_flops + self._resampled_flops(),
            batch_traffic=weight_traffic(self.table, step, gpus=gpus, sharding=loop.sharding),
            step_traffic=gradient_traffic(self.table, gpus=gpus, batches=batches, sharding=loop.sharding),
            batches=batches,
            clips=loop.batches_per_step * self.geometry.batch,
            steps=loop.steps,
            minutes=loop.max_minutes,
        )

    def teacher_clip_flops(self) -> float:
        """Of making one of the clips to train on, by the teacher's own sampler."""
        guided = self.teacher.settings.guidance_scale != 1.0
        return (2 if guided else 1) * self._rollout(self.teacher.model) / self.geometry.batch

    def _own_rollouts(self) -> tuple[float, int]:
        """What the student rolls out for its own context: operations a batch, in the mean, and bytes of its memory."""
        config = self.config
        if not isinstance(config, DistillConfig) or not config.on_policy_share:
            return 0.0, 0
        each = [self._rollout(self.student, known) for known in config.on_policy_known]
        memory = memory_bytes(
            self.student.config,
            batch=self.geometry.batch,
            frame_tokens=self.geometry.frame_tokens,
            element_size=WEIGHT[config.loop.compute],
        )
        window = self.student.config.window
        seen = self.frames if window is None else min(window, self.frames)
        return config.on_policy_share * sum(each) / len(each), memory.at(seen)

    def _resampled_flops(self) -> float:
        """Of the student's context where it is its own sample of the clip: a batch, in the mean."""
        config = self.config
        if not isinstance(config, DistillConfig) or not config.resampled_share:
            return 0.0
        first = self.teacher.settings.first_block_frames
        one = clip_flops(self.student.config, self.geometry, frames=self.frames, first_block_frames=first).total
        rounds = sum(config.resample_rounds) / len(config.resample_rounds)
        share = (1 - config.on_policy_share) * config.resampled_share
        return share * rounds * _passes(self.teacher.settings)[0] * one

    def _rollout(self, model: CausalWanTransformer3DModel, known_blocks: int = 0) -> int:
        settings = self.teacher.settings
        passes, first_passes = _passes(settings)
        return rollout_flops(
            model.config,
            self.geometry,
            frames=self.frames,
            passes=passes,
            first_block_passes=first_passes,
            first_block_frames=settings.first_block_frames,
            known_blocks=known_blocks,
        ).total


def _passes(settings: GenerationSettings) -> tuple[int, int]:
    """Denoising passes of a block, and of the first one."""
    if settings.solver != "few-step":
        return settings.solver_steps, settings.solver_steps
    return len(settings.steps), len(settings.first_block_steps or settings.steps)

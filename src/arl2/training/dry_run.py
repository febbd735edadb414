"""``--dry-run``: what a run would be, without data, weights or steps."""

import json
from typing import Any

import torch

from arl2.attention.memory import MemoryGeometry
from arl2.checkpoints.describe import LATENT_STRIDE
from arl2.geometry import token_grid
from arl2.training.align import AlignConfig
from arl2.training.config import config_to_mapping
from arl2.training.distill import DistillConfig
from arl2.training.estimate import estimate_step
from arl2.training.students import load_teacher, make_student
from arl2.training.trainable import Stage, parameter_table


def dry_run(config: Any) -> str:
    """Every setting of a run; of a conversion also what trains and what a step takes.

    Raises:
        CheckpointError, ConfigError, GeometryError: a teacher, a plan or lengths that cannot be.
    """
    settings = json.dumps(config_to_mapping(config), indent=1)
    if not isinstance(config, AlignConfig | DistillConfig):
        return settings
    return f"{settings}\n\n{conversion_costs(config)}"


def conversion_costs(config: AlignConfig | DistillConfig) -> str:
    """The parameter table, and operations and memory of the longest batch, from the teacher's sizes alone."""
    stage: Stage = 1 if isinstance(config, AlignConfig) else 2
    teacher = load_teacher(config.teacher, device=torch.device("meta"), window=config.teacher_window)
    student = make_student(teacher, config.student())
    table = parameter_table(student, stage)
    settings, frames = teacher.settings, max(config.frames)
    grid = token_grid(
        settings.height // LATENT_STRIDE, settings.width // LATENT_STRIDE, tuple(teacher.model.config.patch_size)
    )
    step = estimate_step(
        teacher.model.config,
        student.config,
        table,
        MemoryGeometry(max(1, config.batch_frames // frames), grid.rows, grid.columns, student.config.block_frames),
        frames=frames,
        first_block_frames=settings.first_block_frames,
        checkpointing=config.activation_checkpointing,
        layers_alone=stage == 1,
    )
    lines = [f"plan {student.config.layer_plan}, trained in stage {stage}", table.text(), "", step.text()]
    batches = config.loop.batches_per_step
    if batches > 1:
        lines.append(f"a step: {batches} such batches, shared out over the processes")
    return "\n".join(lines)

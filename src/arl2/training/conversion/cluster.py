"""What a run of a conversion will take on many GPUs, told before they are rented: memory, time, traffic, GPU-hours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from arl2.errors import ConfigError
from arl2.training.conversion.estimate import MASTER, WEIGHT, StepEstimate
from arl2.training.conversion.trainable import ParameterTable
from arl2.training.engine.task import Sharding

PAPER_HOURS = 156  # H100-hours of both stages, as ARL2 (arXiv 2605.16579) says
_SPARE = 0.1  # of the memory, for CUDA, the links' buffers and holes between tensors
_AVERAGED = 4  # float32 numbers beside each number that trains: gradient, two moments, average


@dataclass(frozen=True)
class Cluster:
    """Some GPUs of one kind; the defaults are H100s.

    Attributes:
        gpus: how many.
        memory: of one, in GB.
        tflops: peak of one, dense bfloat16.
        utilisation: share of the peak that is taken to be reached. The best engine for this model sustains 440 TFLOP/s
            of an H100's 989 in generation, which is 0.44; training has more that moves memory instead.

    Raises:
        ConfigError: a number that cannot be.
    """

    gpus: int = 8
    memory: float = 80.0
    tflops: float = 989.0
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"{self.gpus} GPUs came; give 1 or more.")
        for name, value in (("memory", self.memory), ("peak", self.tflops)):
            if not 0 < value < math.inf:
                raise ConfigError(f"A GPU's {name} is {value}; give a number above 0, in GB or TFLOP/s.")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(
                f"The utilisation is {self.utilisation}; give the share of the peak, above 0 and up to 1."
            )

    def seconds(self, flops: float) -> float:
        """That one GPU takes."""
        return flops / (self.tflops * 1e12 * self.utilisation)

    def hours(self, flops: float) -> float:
        """GPU-hours."""
        return self.seconds(flops) / 3600


@dataclass(frozen=True)
class LayerSizes:
    """Numbers of a student: of its largest layer, and of all that is in no layer."""

    largest: int
    ends: int

    @classmethod
    def of(cls, model: nn.Module, layers: nn.ModuleList) -> "LayerSizes":
        """Count; works on the meta device."""
        counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        return cls(max(counts), sum(p.numel() for p in model.parameters()) - sum(counts))


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """A whole run on a cluster.

    Attributes:
        cluster: where.
        memory: bytes of one GPU, by part.
        kept_whole: bytes that activations would take, were none computed again.
        batch_flops: operations of a batch, what the student rolls out itself included, on average.
        batch_traffic: bytes of weights that a GPU receives for a batch.
        step_traffic: bytes of gradients that a GPU sends (and receives) for a step.
        batches: of one GPU in a step.
        clips: of a step, on all GPUs.
        steps: of the run; None where the clock ends it.
        minutes: where the clock ends it.
    """

    cluster: Cluster
    memory: Mapping[str, int]
    kept_whole: int
    batch_flops: float
    batch_traffic: float
    step_traffic: float
    batches: int
    clips: int
    steps: int | None
    minutes: float | None

    @property
    def memory_bytes(self) -> int:
        """Of one GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether that leaves a tenth of the GPU free."""
        return self.memory_bytes <= (1 - _SPARE) * self.cluster.memory * 1e9

    @property
    def step_seconds(self) -> float:
        """Of computing; gathering weights is hidden behind it where the links are fast enough."""
        return self.cluster.seconds(self.batch_flops) * self.batches

    @property
    def gpu_hours(self) -> float:
        """Of the whole run, without its evaluations."""
        if self.steps is None:
            return self.cluster.gpus * (self.minutes or 0) / 60
        return self.cluster.gpus * self.steps * self.step_seconds / 3600

    def text(self) -> str:
        """For a terminal."""
        cluster = self.cluster
        lines = [
            f"on {cluster.gpus} GPUs of {cluster.memory:g} GB and {cluster.tflops:g} TFLOP/s, of which "
            f"{100 * cluster.utilisation:.0f} % are taken to be reached",
            "memory of a GPU, GB:",
            *(f"  {name:<{max(map(len, self.memory))}}{size / 1e9:>9.2f}" for name, size in self.memory.items()),
            f"  {'in all':<{max(map(len, self.memory))}}{self.memory_bytes / 1e9:>9.2f}  {self._verdict()}",
            f"  (with all activations kept they alone would take {self.kept_whole / 1e9:,.1f})",
            f"a step: {self.clips} clips; a GPU runs {self.batches} of its batches, "
            f"{self.batch_flops * self.batches / 1e12:,.0f} TFLOP, {self.step_seconds:.1f} s",
            f"traffic: weights {self.batch_traffic / 1e9:.2f} GB a batch into a GPU, gradients "
            f"{self.step_traffic / 1e9:.2f} GB a step: {self._rate() / 1e9:.1f} GB/s, hidden behind computing where "
            "the links give more",
        ]
        length = f"{self.steps:,} steps" if self.steps is not None else "as long as the clock says"
        hours = self.gpu_hours
        lines.append(f"the run: {length}, {hours / cluster.gpus:.1f} hours, {hours:,.0f} GPU-hours without evaluations")
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.fits:
            return f"fits: {self.cluster.memory - self.memory_bytes / 1e9:.1f} are left"
        return (
            f"does not fit, as {100 * _SPARE:.0f} % are to stay free: compute activations again "
            "(activation_checkpointing), in bfloat16 (loop.compute), in shards (loop.sharding), or fewer batch_frames"
        )

    def _rate(self) -> float:
        return (self.batch_traffic * self.batches + self.step_traffic) / max(self.step_seconds, 1e-9)


def memory_of_gpu(
    step: StepEstimate,
    table: ParameterTable,
    sizes: LayerSizes,
    *,
    gpus: int,
    sharding: Sharding,
    stream_bytes: int = 0,
) -> dict[str, int]:
    """Bytes of one GPU, by part.

    Args:
        step: its batch.
        table: what trains.
        sizes: of the student.
        gpus: that share the weights, if they do.
        sharding: ``"full"``: each GPU keeps a share of every tensor of teacher and of student, which have shards of
            their own then. Two layers are gathered at a time, the one that runs and the next, and what is in no layer
            for the whole pass.
        stream_bytes: memory of the streams that the student rolls out itself, before activations are made; with shards
            it does so on a whole copy of itself. What needs more counts.
    """
    size = WEIGHT[step.compute]
    beside = (1 + _AVERAGED) * MASTER * table.trained
    if sharding == "none" or gpus == 1:
        return {
            f"frozen weights, {step.compute}": size * table.frozen,
            "what trains: float32, gradients, moments, average": beside,
            "activations": max(step.activation_bytes, stream_bytes),
        }
    copy = step.weight_bytes if stream_bytes else 0
    # A layer that is gathered brings what trains in float32; counting all of it as frozen misses a few per cent of a
    # layer.
    return {
        f"frozen weights, {step.compute}, 1/{gpus} of teacher and student": math.ceil(2 * size * table.frozen / gpus),
        f"what trains: float32, gradients, moments, average, 1/{gpus}": math.ceil(beside / gpus),
        f"gathered: two layers and the ends, {step.compute}": size * (2 * sizes.largest + sizes.ends),
        "activations": max(step.activation_bytes, copy + stream_bytes),
    }


def weight_traffic(table: ParameterTable, step: StepEstimate, *, gpus: int, sharding: Sharding) -> float:
    """Bytes of weights that a GPU receives for a batch: the teacher's once, the student's forward and backward."""
    if sharding == "none":
        return 0.0
    model = WEIGHT[step.compute] * table.frozen + MASTER * table.trained
    return (gpus - 1) / gpus * 3 * model


def gradient_traffic(table: ParameterTable, *, gpus: int, batches: int, sharding: Sharding) -> float:
    """Bytes of gradients that a GPU sends for a step.

    Without shards they are summed once a step (a ring sends each number twice); with shards each batch's are brought
    to where they belong.
    """
    once = (gpus - 1) / gpus * MASTER * table.trained
    return 2 * once if sharding == "none" else batches * once


def beside_the_paper(parts: Mapping[str, float], *, missing: list[str]) -> str:
    """All GPU-hours that are known, beside the paper's."""
    lines = [f"  {name:<24}{hours:>8.1f}" for name, hours in parts.items()]
    total = sum(parts.values())
    lines.append(f"  {'in all':<24}{total:>8.1f}  (the paper's conversion: about {PAPER_HOURS} H100-hours)")
    left = f"\n  not in it: {' and '.join(missing)}" if missing else ""
    return "GPU-hours:\n" + "\n".join(lines) + left


def batches_of_gpu(loop: Any, gpus: int) -> int:
    """Batches of one GPU in a step.

    Raises:
        ConfigError: they cannot be shared out evenly.
    """
    batches: int = loop.batches_per_step
    if batches % gpus:
        raise ConfigError(
            f"loop.batches_per_step = {batches} cannot be shared out evenly over {gpus} GPUs; make it a multiple."
        )
    return batches // gpus

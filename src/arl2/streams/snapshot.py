"""The content of a stream's snapshot: metadata as JSON, and named tensors.

text.0, text.1                      embeddings of the prompt and, under guidance, of the negative one
change.text                         of a pending prompt
sinks.{i}, last.{i}, waiting.{i}    latents, block by block; waiting ones are pending conditioning frames
light: states.{m}.layers.{i}.state  recurrent states of memory m
exact: memory.{m}.layers.{i}....    all of memory m
       decoder....                  the codec's feature cache
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError, SnapshotError
from arl2.files.atomic import StagedFile
from arl2.rollout.samplers import FewStep, MultiStep, Sampler
from arl2.streams.recent import LatentBlock
from arl2.streams.snapshot_file import publish_snapshot, snapshot_bytes, stage_snapshot
from arl2.streams.state import SnapshotKind, StreamConfig, StreamState

logger = logging.getLogger(__name__)

# Files of the first versions say "unipc" of diffusers' grid, and their streams continue on it.
_STORED_SOLVERS = {"unipc": "unipc-published", "unipc-diffusers": "unipc"}
_SOLVERS: dict[str, Any] = {stored: solver for solver, stored in _STORED_SOLVERS.items()}


def stage_stream(path: Path, config: StreamConfig, state: StreamState, kind: SnapshotKind) -> StagedFile:
    """Write a stream between two blocks; see :meth:`arl2.streams.stream.Stream.stage`."""
    _check_kind(config, state, kind)
    _require_alone(config)
    return stage_snapshot(path, snapshot_metadata(config, state, kind), snapshot_tensors(state, kind))


def save_stream(path: Path, config: StreamConfig, state: StreamState, kind: SnapshotKind) -> None:
    """Write a stream between two blocks; see :meth:`arl2.streams.stream.Stream.save`.

    Of several ranks all call it: the first gathers the heads of all and writes, and none returns before.
    """
    _check_kind(config, state, kind)
    parallel, refused = config.components.transformer.parallel, None
    tensors = snapshot_tensors(state, kind)
    if parallel.is_first:
        try:
            publish_snapshot(stage_snapshot(path, snapshot_metadata(config, state, kind), tensors))
        except SnapshotError as error:
            refused = error
    # All of them go on or none does: a rank that goes on alone would wait for the others.
    if parallel.any(refused is not None):
        raise refused or SnapshotError("The first rank cannot write the snapshot; its own message says why.")


def stream_bytes(config: StreamConfig, state: StreamState, kind: SnapshotKind) -> bytes:
    """The same as bytes; see :meth:`arl2.streams.stream.Stream.save_bytes`."""
    _check_kind(config, state, kind)
    _require_alone(config)
    return snapshot_bytes(snapshot_metadata(config, state, kind), snapshot_tensors(state, kind))


def _require_alone(config: StreamConfig) -> None:
    ranks = config.components.transformer.parallel.ranks
    if ranks > 1:
        raise ConfigError(f"This stream is split over {ranks} ranks; call save() on all of them.")


def _check_kind(config: StreamConfig, state: StreamState, kind: str) -> None:
    if kind not in get_args(SnapshotKind):
        raise ConfigError(f'Got snapshot kind {kind!r}; give "light" or "exact".')
    if kind == "light" and config.shape.window is None and not state.recent.holds_all:
        logger.warning(
            "A light snapshot of a stream without a window keeps only its last %d latent frames, and softmax "
            "layers forget those before; save an exact one, or begin the stream with a window.",
            state.recent.keep,
        )


def snapshot_metadata(config: StreamConfig, state: StreamState, kind: SnapshotKind) -> dict[str, Any]:
    """Everything but the tensors."""
    settings, shape, recent = state.rollout.settings, config.shape, state.recent
    change = state.change
    return {
        "kind": kind,
        "model": config.model,
        "seeds": list(state.seeds),
        "prompts": _given(state.prompts.given),
        "texts": len(state.prompts.texts),
        "sampler": sampler_metadata(settings.sampler),
        "first_block_frames": settings.first_block_frames,
        "first_generated": state.rollout.first_generated,
        "first_block_candidates": 1 if settings.best_of is None else settings.best_of.candidates,
        "context_noise": float(settings.context_noise),
        "batch": shape.batch,
        "height": shape.height,
        "width": shape.width,
        "window": shape.window,
        "sink": shape.sink,
        "sink_positions": shape.sink_positions,
        "num_frames": None if config.plan is None else config.plan.requested,
        "index": state.index,
        "frames": state.rollout.frames,
        "start": recent.start,
        "sinks": _spans(recent.sinks_apart),
        "last": _spans(recent.last),
        "sinks_known": [block.known for block in recent.sinks_apart],
        "last_known": [block.known for block in recent.last],
        "waiting": len(state.pending),
        "waiting_cuts": [block.cut for block in state.pending],
        "cut": state.cut,
        "change": None if change is None else {"prompts": _given(change.prompts.given), "mode": change.mode},
        "rewind_blocks": config.rewind_blocks,
        "rewind_kind": config.rewind_kind,
        "memories": [memory.facts() for memory in state.rollout.memories] if kind == "exact" else [],
    }


def snapshot_tensors(state: StreamState, kind: SnapshotKind) -> dict[str, Tensor]:
    """Everything but the metadata; of several ranks on the first one, the others lack the memories."""
    tensors = {f"text.{i}": without_padding(text) for i, text in enumerate(state.prompts.texts)}
    if state.change is not None:
        tensors["change.text"] = without_padding(state.change.prompts.texts[0])
    for name, blocks in (("sinks", state.recent.sinks_apart), ("last", state.recent.last)):
        tensors |= {f"{name}.{i}": block.latents for i, block in enumerate(blocks)}
    tensors |= {f"waiting.{i}": block.latents for i, block in enumerate(state.pending)}
    if kind == "light":
        for m, memory in enumerate(state.rollout.memories):
            tensors |= {f"states.{m}.{name}": one for name, one in memory.gathered(memory.states()).items()}
        return tensors
    for m, memory in enumerate(state.rollout.memories):
        tensors |= {f"memory.{m}.{name}": one for name, one in memory.gathered(memory.views()).items()}
    return tensors | {f"decoder.{name}": one for name, one in state.decoder.to_tensors().items()}


def without_padding(text: Tensor) -> Tensor:
    """Embeddings without the zero rows that end all of them; the model pads them again."""
    used = text.ne(0).any(dim=-1).any(dim=0)
    rows = int(torch.arange(1, len(used) + 1, device=used.device).mul(used).max())
    return text[:, : max(1, rows)]


def sampler_metadata(sampler: Sampler) -> dict[str, Any]:
    """A sampler as plain values."""
    schedule = {"shift": sampler.schedule.shift, "train_steps": sampler.schedule.train_steps}
    if isinstance(sampler, FewStep):
        first = sampler.plan.first_block
        steps = {"levels": list(sampler.plan.timesteps), "first_block": None if first is None else list(first)}
        return {"kind": "few-step", **steps, **schedule, "fresh_below": sampler.first_block_fresh_below}
    kind = _STORED_SOLVERS.get(sampler.solver, sampler.solver)
    return {"kind": kind, "steps": sampler.steps, **schedule, "guidance_scale": sampler.guidance_scale}


def sampler_of(metadata: dict[str, Any]) -> Sampler:
    """The inverse of ``sampler_metadata``.

    Raises:
        KeyError, TypeError: metadata of no sampler.
        ConfigError: values out of range.
    """
    schedule = NoiseSchedule(float(metadata["shift"]), int(metadata["train_steps"]))
    if metadata["kind"] == "few-step":
        first = metadata["first_block"]
        plan = StepPlan(tuple(map(float, metadata["levels"])), None if first is None else tuple(map(float, first)))
        return FewStep(plan, schedule, float(metadata["fresh_below"]))
    solver = _SOLVERS.get(metadata["kind"], metadata["kind"])
    return MultiStep(int(metadata["steps"]), float(metadata["guidance_scale"]), schedule, solver)


def _given(prompts: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(prompts) if isinstance(prompts, tuple) else prompts


def _spans(blocks: Sequence[LatentBlock]) -> list[list[int]]:
    return [[block.frames.start, block.frames.stop] for block in blocks]

"""Compares every reference output of the published code with what this machine computes, through the public API."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from arl2.attention.memory import Memory, RecurrentState
from arl2.checkpoints.load import load_transformer
from arl2.diffusion.samplers import published_unipc_grid
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import CheckpointError, ConfigError
from arl2.evaluation.check import Check as Check
from arl2.evaluation.goldens import GoldenFolder, RolloutGolden, SampledGolden, read_goldens, relative_error
from arl2.float64 import float64_device
from arl2.kernels.backends import DELTA_RULE, check_backend, use_backends
from arl2.kernels.delta_rule import gated_delta_rule, gated_delta_state
from arl2.model.execution import Execution
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.devices import checked_device
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import GivenNoise
from arl2.rollout.samplers import FewStep, MultiStep, Sampler

# Float32: what an implementation written from the formulas alone stays well under (ours: 3e-6). Half precision: about
# twice what this code measures on a CPU (in bfloat16 rounding the weights alone moves latents by 3e-3, states by 9e-3).
LIMITS = {
    torch.float64: {"flow": 2e-5, "state": 2e-5, "kernel": 2e-5},
    torch.float32: {"flow": 2e-5, "state": 2e-5, "kernel": 2e-5},
    torch.float16: {"flow": 2.5e-3, "state": 6e-3, "kernel": 1e-3},
    torch.bfloat16: {"flow": 2e-2, "state": 5e-2, "kernel": 1e-2},
}
SCHEDULE_LIMIT = 1e-6


def selfcheck(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    round_trip: bool = False,
    execution: Execution | None = None,
) -> Iterator[Check]:
    """Compare every tensor of a golden folder.

    Args:
        folder: layout of docs/goldens.md.
        device, dtype: to compute on and in; ``"auto"`` takes the best device of this machine.
        backend: of the delta rule, in the kernel cases and inside the models.
        round_trip: save each model with ``save_pretrained`` and load it back first.
        execution: how streaming passes run.

    Yields:
        One :class:`Check` per tensor, as they are computed.

    Raises:
        CheckpointError: a folder or file that cannot be read.
        ConfigError: a dtype without limits, or an unknown backend.
    """
    if dtype not in LIMITS:
        raise ConfigError(f"There are no limits for {dtype}; choose {', '.join(str(d) for d in LIMITS)}.")
    check_backend(DELTA_RULE, backend)
    device = checked_device(device)
    goldens = read_goldens(folder)
    if goldens.rollouts:
        yield from _check_schedule(goldens)
        yield from _check_delta_rule(goldens, device, dtype, backend)

    def ready(model: CausalWanTransformer3DModel) -> CausalWanTransformer3DModel:
        model = _saved_and_loaded(model, dtype).to(device) if round_trip else model
        model.execution = execution or Execution()
        return model

    for golden in goldens.rollouts:
        model = ready(load_transformer(golden.checkpoint, dtype=dtype, device=device, **golden.settings()))
        with use_backends(delta_rule=backend):
            # A list: what happens inside the `with` must not depend on who iterates, and when.
            checks = [*_check_rollout(golden, model), *_check_parallel(golden, model)]
        yield from checks
    for sampled in goldens.sampled:
        model = ready(_load_sampled(sampled, dtype=dtype, device=device))
        with use_backends(delta_rule=backend):
            checks = list(_check_sampled(sampled, model))
        yield from checks


def _load_sampled(golden: SampledGolden, *, dtype: torch.dtype, device: str) -> CausalWanTransformer3DModel:
    if golden.checkpoint is not None:
        return load_transformer(golden.checkpoint, dtype=dtype, device=device, **golden.model_settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"checkpoint_{golden.name}.pt"
        torch.save({"generator": golden.weights}, path)
        return load_transformer(path, dtype=dtype, device=device, **golden.model_settings)


def _check_sampled(golden: SampledGolden, model: CausalWanTransformer3DModel) -> Iterator[Check]:
    """A rollout from conditioning frames, or of a solver with guidance: its timesteps, last states and latents."""
    limits, tensors, known = LIMITS[model.compute_dtype], golden.tensors, golden.known
    sampler, size, noise = golden.settings.sampler(), model.config.block_frames, tensors["noise"]
    if "timesteps" in tensors:
        timesteps = torch.tensor(sampler.timesteps_of(0), dtype=torch.float64)
        yield Check(f"{golden.name}/timesteps", relative_error(timesteps, tensors["timesteps"]), SCHEDULE_LIMIT)
    if "sigmas" in tensors and isinstance(sampler, MultiStep):
        schedule = sampler.schedule
        grid = published_unipc_grid(sampler.steps, shift=schedule.shift, train_steps=schedule.train_steps)
        yield Check(f"{golden.name}/sigmas", relative_error(grid.sigmas, tensors["sigmas"]), SCHEDULE_LIMIT)
    if known is not None:  # whose blocks take no noise
        noise = torch.cat([torch.zeros_like(known), noise], dim=2)
    memory = model.allocate_memory(batch=len(noise), height=noise.shape[3], width=noise.shape[4])
    negative = tensors["negative_text"].to(model.device) if sampler.guidance_scale != 1.0 else None
    blocks = generate_blocks(
        model,
        tensors["text"].to(model.device),
        noise=GivenNoise(noise, _fresh_noise(golden, sampler, noise.shape[2] // size), size),
        sampler=sampler,
        height=noise.shape[3],
        width=noise.shape[4],
        frames=noise.shape[2],
        negative_text=negative,
        known=known,
        memory=memory,
    )
    result = torch.cat([block.latents for block in blocks], dim=2)
    for i, layer in enumerate(memory.layers):
        if isinstance(layer, RecurrentState) and f"state.{i}" in tensors:
            yield Check(f"{golden.name}/state.{i}", relative_error(layer.state, tensors[f"state.{i}"]), limits["state"])
    yield Check(f"{golden.name}/latents", relative_error(result, tensors["latents"]), limits["flow"])


def _fresh_noise(golden: SampledGolden, sampler: Sampler, blocks: int) -> dict[tuple[int, int], Tensor]:
    """The recorded fresh noise by block and re-noising; a solver takes none.

    Raises:
        CheckpointError: another number of tensors than the steps take.
    """
    if not isinstance(sampler, FewStep):
        return {}
    begun = blocks - golden.tensors["noise"].shape[2] // golden.model_settings["block_frames"]  # after the known ones
    places = [(block, j) for block in range(begun, blocks) for j in range(len(sampler.timesteps_of(block - begun)) - 1)]
    if len(places) != len(golden.fresh_noise):
        raise CheckpointError(
            f"The golden rollout {golden.name} has fresh noise for {len(golden.fresh_noise)} steps instead of "
            f"{len(places)}; the golden file is not whole."
        )
    return dict(zip(places, golden.fresh_noise, strict=True))


def _check_schedule(goldens: GoldenFolder) -> Iterator[Check]:
    schedule, recorded = NoiseSchedule(), goldens.schedule
    warped = torch.tensor(schedule.warp([1000, 750, 500, 250]), dtype=torch.float64)
    for name, ours in (
        ("sigmas", schedule.sigmas()),
        ("timesteps", schedule.timesteps()),
        ("training_weights", schedule.training_weights()),
        ("warped_steps_1000_750_500_250", warped),
    ):
        yield Check(f"schedule/{name}", relative_error(ours, recorded[name]), SCHEDULE_LIMIT)


def _check_delta_rule(goldens: GoldenFolder, device: str, dtype: torch.dtype, backend: str) -> Iterator[Check]:
    limit = LIMITS[dtype]["kernel"]
    for case, tensors in goldens.delta_rule.items():
        k, v, q = (tensors[name].to(device, dtype) for name in ("k", "v", "q"))
        g, beta = tensors["g"].to(device), tensors["beta"].to(device)
        start = tensors["initial_state"].to(device) if "initial_state" in tensors else None
        o, state = gated_delta_rule(q=q, k=k, v=v, g=g, beta=beta, initial_state=start, backend=backend)
        alone = gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=start, backend=backend)
        yield Check(f"gated_delta_rule/{case}.o", relative_error(o, tensors["o"]), limit)
        for name, ours in (("final_state", state), ("final_state (state only)", alone)):
            yield Check(f"gated_delta_rule/{case}.{name}", relative_error(ours, tensors["final_state"]), limit)


def _check_rollout(golden: RolloutGolden, model: CausalWanTransformer3DModel) -> Iterator[Check]:
    """The stream: timesteps, first passes, the state after every block, the latents."""
    limits = LIMITS[model.compute_dtype]
    schedule = NoiseSchedule(shift=golden.timestep_shift)
    plan = StepPlan.from_steps(golden.denoising_steps, schedule=schedule)
    levels = torch.tensor(plan.timesteps, dtype=torch.float64)
    yield Check(f"{golden.name}/timesteps", relative_error(levels, golden.tensors["timesteps"]), SCHEDULE_LIMIT)

    noise, text = golden.clip("noise"), golden.tensors["prompt_embeds"].to(model.device)
    frames, height, width = noise.shape[2:]
    size = model.config.block_frames
    memory = model.allocate_memory(batch=noise.shape[0], height=height, width=width)

    def first_pass(block: int) -> Tensor:
        x = noise[:, :, block * size : (block + 1) * size].to(model.device)
        timestep = torch.full(
            (x.shape[0], size), plan.timesteps[0], dtype=torch.float64, device=float64_device(x.device)
        )
        flow = model.predict(x, timestep, text, memory)
        return flow.transpose(1, 2)

    with torch.no_grad():
        error = relative_error(first_pass(0), golden.tensors["flow_pred_first_pass"])
        yield Check(f"{golden.name}/flow_pred_first_pass", error, limits["flow"])
        latents = []
        for block in generate_blocks(
            model,
            text,
            noise=GivenNoise(noise, _renoise(golden), size),
            sampler=FewStep(plan, schedule),
            height=height,
            width=width,
            frames=frames,
            memory=memory,
        ):
            latents.append(block.latents)
            yield from _check_states(golden, memory, block.index, limits["state"])
            if block.index == 0:
                error = relative_error(first_pass(1), golden.tensors["flow_pred_second_block_first_pass"])
                yield Check(f"{golden.name}/flow_pred_second_block_first_pass", error, limits["flow"])
    result = torch.cat(latents, dim=2).transpose(1, 2)
    yield Check(f"{golden.name}/latents", relative_error(result, golden.tensors["latents"]), limits["flow"])


def _check_states(golden: RolloutGolden, memory: Memory, block: int, limit: float) -> Iterator[Check]:
    for i, layer in enumerate(memory.layers):
        if isinstance(layer, RecurrentState):
            name = f"state_after_block.{block}.layer.{i}"
            if name not in golden.tensors:
                raise CheckpointError(f"The golden rollout {golden.name} lacks {name}; the golden file is not whole.")
            yield Check(f"{golden.name}/{name}", relative_error(layer.state, golden.tensors[name]), limit)


def _check_parallel(golden: RolloutGolden, model: CausalWanTransformer3DModel) -> Iterator[Check]:
    """The training forwards."""
    limit, device = LIMITS[model.compute_dtype]["flow"], model.device
    noise, text = golden.clip("noise").to(device), golden.tensors["prompt_embeds"].to(device)
    runs = {
        "diffusion_forcing": DiffusionForcing(),
        "teacher_forcing": TeacherForcing(golden.clip("teacher_forcing.clean").to(device)),
    }
    for name, run in runs.items():
        timesteps = golden.tensors[f"{name}.timesteps"].to(device)
        with torch.no_grad():
            flow = model(noise, timesteps, text, run=run).transpose(1, 2)
        yield Check(f"{golden.name}/{name}.flow_pred", relative_error(flow, golden.tensors[f"{name}.flow_pred"]), limit)


def _renoise(golden: RolloutGolden) -> dict[tuple[int, int], Tensor]:
    found = {}
    for name, tensor in golden.tensors.items():
        if name.startswith("renoise."):
            _, block, j = name.split(".")
            found[int(block), int(j)] = tensor.transpose(1, 2)
    return found


def _saved_and_loaded(model: CausalWanTransformer3DModel, dtype: torch.dtype) -> CausalWanTransformer3DModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: CausalWanTransformer3DModel = CausalWanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
        return cast_model(loaded, dtype).eval()

"""The correctness gate: fast forms against their naive twins, and a stream against the same clip in parallel.

It runs at a small size, on the device and in the dtype that are measured. Where it fails, times say nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arl2.evaluation.bench.models import random_model
from arl2.evaluation.bench.result import Check
from arl2.kernels.attention import naive as naive_attention
from arl2.kernels.attention import softmax_attention
from arl2.kernels.backends import use_backends
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.delta_rule import naive as naive_delta
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel

# Relative errors of the norm. Kernels: the reference computes with the same rounded inputs in float64, so what counts
# is the rounding inside and of the result. Models: two orders of summation, through all layers.
KERNEL_LIMITS = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
MODEL_LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_dim": 96,
    "text_dim": 16,
    "text_len": 8,
    "freq_dim": 32,
    "block_frames": 2,
}


def relative(ours: Tensor, truth: Tensor) -> float:
    """The norm of the difference over the norm of the truth."""
    ours, truth = (x.detach().to("cpu", torch.float64) for x in (ours, truth))
    return float((ours - truth).norm() / truth.norm())


def random_writes(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str, *, seed: int = 0
) -> dict[str, Any]:
    """Inputs of a state update as layers make them: ``k, v [B, T, H, D]``, ``g, beta [B, T, H]``."""
    draw = torch.Generator().manual_seed(seed)
    inputs = {
        "k": F.normalize(torch.randn(shape, generator=draw), dim=-1).to(dtype),
        "v": torch.randn(shape, generator=draw).to(dtype),
        "g": -0.1 * torch.rand(shape[:3], generator=draw),
        "beta": 2 * torch.rand(shape[:3], generator=draw),
    }
    return {name: x.to(device) for name, x in inputs.items()}


def kernel_checks(dtype: torch.dtype, device: torch.device | str) -> Iterator[Check]:
    """State update and attention against the recurrence and the formula, both in float64 on the CPU."""
    writes = random_writes((1, 150, 2, 32), dtype, device)  # two whole chunks, and a part of one
    truth = naive_delta.gated_delta_state(**{name: x.cpu() for name, x in writes.items()})
    yield Check("state update, naive twin", relative(gated_delta_state(**writes), truth), KERNEL_LIMITS[dtype])
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, tokens, 2, 32, generator=draw).to(dtype) for tokens in (70, 150, 150))
    exact = naive_attention.softmax_attention(q=q.double(), k=k.double(), v=v.double())
    ours = softmax_attention(q=q.to(device), k=k.to(device), v=v.to(device))
    yield Check("attention, naive twin", relative(ours, exact), KERNEL_LIMITS[dtype])


@torch.no_grad()
def streaming_check(
    plan: str, dtype: torch.dtype, device: torch.device | str, *, window: int | None = None, sink: int = 0
) -> Check:
    """A stream of a few blocks equals the parallel forward of the same clip, which keeps no memory at all."""
    config: dict[str, Any] = {**_TINY, "layer_plan": plan, "window": window, "sink": sink}
    if plan.strip("S"):
        config |= {"state_rank": 4, "ffn_rank": 4}
    model = random_model(config, dtype, device)
    frames, block = 8, _TINY["block_frames"]
    draw = torch.Generator().manual_seed(2)
    shape = (1, model.config.in_channels, frames, 8, 12)
    clean, noisy = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
    text = torch.randn(1, model.config.text_len, model.config.text_dim, generator=draw).to(device)
    timestep = torch.full((1, frames), 600.0)
    with use_backends(attention="sdpa"):  # what training runs on a GPU has to be compiled first
        parallel = model(noisy, timestep, text, run=TeacherForcing(clean=clean))
    streamed = streamed_flow(model, clean, noisy, text, timestep=600.0, block=block)
    kept = "" if window is None else f", window {window}"
    return Check(f"stream against parallel, {plan}{kept}", relative(streamed, parallel), MODEL_LIMITS[dtype])


def streamed_flow(
    model: CausalWanTransformer3DModel, clean: Tensor, noisy: Tensor, text: Tensor, *, timestep: float, block: int
) -> Tensor:
    """The flow of every noisy block beside its clean past, block by block."""
    memory = model.allocate_memory(batch=clean.shape[0], height=clean.shape[-2], width=clean.shape[-1])
    prompt, flows = model.prompt_context(text), []
    for known, unknown in zip(clean.split(block, dim=2), noisy.split(block, dim=2), strict=True):
        times = torch.full((clean.shape[0], known.shape[2]), timestep)
        flows.append(model.predict(unknown, times, prompt, memory))
        model.commit(known, torch.zeros_like(times), prompt, memory)
    return torch.cat(flows, dim=2)

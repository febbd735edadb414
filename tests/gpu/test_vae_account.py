"""The Wan VAE on a GPU, without one: what it launches and moves at 480x832, and its kernel's machine code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from arl2.evaluation.account import Account, accounted
from arl2.video.codec import Side
from arl2.video.wan_codec import WanCodec
from gpu.ahead_of_time import TARGETS, compiled
from gpu.fake_cuda import fake_cuda, needs_fake_cuda, needs_triton

HEIGHT, WIDTH, BLOCK = 480, 832, 3


def codec_on_cuda() -> WanCodec:
    """Published sizes, bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            vae = AutoencoderKLWan()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("cuda"):
        return WanCodec(vae.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def blocks() -> dict[Side, tuple[Account, dict[str, torch.Size]]]:
    """The second block of a stream in each direction, and what it leaves remembered."""
    found = {}
    with fake_cuda(), torch.no_grad():
        codec = codec_on_cuda()
        for side in ("decoder", "encoder"):
            cache = codec.new_cache(side)
            for block in range(2):
                frames = codec.frames_of(BLOCK * block, BLOCK)
                latents = torch.empty(1, 16, BLOCK, HEIGHT // 8, WIDTH // 8, device="cuda", dtype=torch.bfloat16)
                video = torch.empty(1, 3, frames, HEIGHT, WIDTH, device="cuda", dtype=torch.bfloat16)
                with accounted() as account:
                    result = codec.decode(latents, cache) if side == "decoder" else codec.encode(video, cache)
            assert result.shape == (video if side == "decoder" else latents).shape
            held = sum(x.numel() * x.element_size() for x in cache.features.values())
            found[side] = account, held
    return found


@needs_fake_cuda
@pytest.mark.parametrize(
    ("side", "kernels", "gigabytes", "teraflops"), [("decoder", 172, 15.0, 13.1), ("encoder", 100, 10.0, 8.1)]
)
def test_kernels_and_bytes_of_a_latent_frame(blocks, side, kernels, gigabytes, teraflops):
    """Ceilings a few per cent above what is counted. diffusers' passes: 1,360 launches a block, 103 and 58 GB."""
    account, _ = blocks[side]
    assert account.kernels <= kernels
    assert account.elementwise.bytes <= gigabytes * 1e9 * BLOCK
    assert account.flops <= teraflops * 1e12 * BLOCK


@needs_fake_cuda
@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_nothing_waits_and_nothing_is_copied_from_the_host(blocks, side):
    account, _ = blocks[side]
    assert account.waits == account.transfers == account.mixed == []


@needs_fake_cuda
def test_size_of_what_is_remembered(blocks):
    """1.89 GB before the last convolution kept sums."""
    assert blocks["decoder"][1] == pytest.approx(1.745e9, rel=0.001)
    assert blocks["encoder"][1] == pytest.approx(1.121e9, rel=0.001)


@needs_triton
@pytest.mark.parametrize("target", TARGETS)
def test_the_kernel_reads_wide_and_stays_in_registers(target):
    from arl2.kernels.causal_input.triton_kernel import WARPS, causal_input_kernel, constants

    names = ("x", "bias", "residual", "gamma", "past", "total", "frames", "kept")
    for channels, p in ((96, 2), (96, 1), (192, 1), (384, 1)):
        options = {**constants(channels, p=p, q=p), "LOOKBACK": 2, "MARGIN": 0, "SILU": True}
        pointers = dict.fromkeys(names, "*bf16")
        code = compiled(causal_input_kernel, pointers=pointers, constants=options, warps=WARPS, target=target)
        assert code.spilled == 0
        assert code.reads_16_bytes
        assert code.registers <= 128  # two thirds of the threads that a multiprocessor can hold need no more


@needs_triton
def test_the_kernel_equals_its_twin_in_the_interpreter():
    script = Path(__file__).with_name("interpreted_causal_input.py")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"

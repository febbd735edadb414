"""One block of a model of Wan 2.1's full width at 480 x 832, random weights: does it run here, how fast, in how much?

    python benchmarks/wan_block.py --plan HH --dtype bfloat16 --passes 1

A smoke benchmark: it times denoising passes and the clean pass and gives each as a share of this machine's own
matrix-product rate in the same dtype. ``--plan`` decides the number of layers (Wan2.1-T2V-1.3B has 30).
"""

import argparse
import json
import resource
import time

import torch

from arl2.model.cost import pass_flops
from arl2.model.precision import cast_model, parameter_count
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel


def matrix_product_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Operations a second of a square matrix product in ``dtype``."""
    a = torch.randn(size, size).to(dtype)
    _ = a @ a
    started = time.perf_counter()
    for _ in range(repeats):
        _ = a @ a
    return repeats * 2 * size**3 / (time.perf_counter() - started)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wan2.1-t2v-1.3b")
    parser.add_argument("--plan", default="HH", help="one letter a layer, H or S (default: HH)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=832, help="pixels")
    parser.add_argument("--passes", type=int, default=1, help="denoising passes (the few-step sampler needs 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)

    config = preset_config(given.preset, state_rank=16, ffn_rank=16) | {"layer_plan": given.plan}
    model = cast_model(CausalWanTransformer3DModel(**config), dtype).eval()
    channels, height, width = model.config.in_channels, given.height // 8, given.width // 8
    memory = model.allocate_memory(batch=1, height=height, width=width)
    frames = memory.geometry.block_frames
    latents = torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(0))
    results = {}
    with torch.no_grad():
        text = model.prompt_context(torch.randn(1, model.config.text_len, model.config.text_dim))
        rate = matrix_product_rate(dtype)
        passes = (("denoising pass", model.predict, 1000.0), ("cache-update pass", model.commit, 0.0))
        for name, run, timestep in passes:
            commit = run == model.commit
            flops = pass_flops(model.config, memory.geometry, past_frames=0, commit=commit).total
            times = []
            for _ in range(1 if commit else given.passes):
                started = time.perf_counter()
                flow = run(latents, torch.full((1, frames), timestep), text, memory)
                times.append(time.perf_counter() - started)
                if flow is not None and not bool(torch.isfinite(flow).all()):
                    raise SystemExit("The flow is not finite.")
            seconds = min(times)
            results[name] = {"seconds": seconds, "tflop": flops / 1e12, "share_of_matmul_rate": flops / seconds / rate}
            print(
                f"{name:18s} {seconds:7.2f} s  {flops / 1e12:6.3f} TFLOP  {flops / seconds / 1e9:6.0f} GFLOP/s, "
                f"{100 * flops / seconds / rate:.0f} % of a {given.dtype} matrix product here"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"plan {given.plan}, {parameter_count(model) / 1e6:.0f} M parameters, block of {frames} frames x "
        f"{memory.geometry.frame_tokens} tokens, {given.threads} threads; memory of the stream "
        f"{memory.nbytes / 1e6:.1f} MB, peak of the process {peak / 1e9:.2f} GB"
    )
    print(
        json.dumps(
            {
                "benchmark": "wan_block",
                "plan": given.plan,
                "dtype": given.dtype,
                "threads": given.threads,
                "torch": torch.__version__,
                "matrix_product_gflops": rate / 1e9,
                "memory_bytes": memory.nbytes,
                "peak_bytes": peak,
                "passes": results,
            }
        )
    )


if __name__ == "__main__":
    main()

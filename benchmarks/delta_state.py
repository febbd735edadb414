"""State update of one full-size block: the chunked kernel against an in-place token loop, on the same machine.

    python benchmarks/delta_state.py --threads 2

Prints both times, their ratio, and the share of the machine's own matrix-product rate. Correctness is checked first;
the last line is JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.delta_rule.chunked import CHUNK


def token_loop(*, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """One step per token, in place, all heads at once: what a recurrent kernel does, without its launch overhead."""
    k, v, decay, beta = (x.transpose(1, 2).contiguous() for x in (k, v, g.exp(), beta))
    batch, heads, tokens, key = k.shape
    state = torch.zeros(batch * heads, key, v.shape[-1])
    k, v = k.reshape(-1, tokens, key), v.reshape(-1, tokens, v.shape[-1])
    decay, beta = decay.reshape(-1, tokens), beta.reshape(-1, tokens)
    for t in range(tokens):
        state.mul_(decay[:, t, None, None])
        k_t = k[:, t]
        error = torch.baddbmm(v[:, t, None], k_t[:, None], state, alpha=-1)
        state.baddbmm_((beta[:, t, None] * k_t)[..., None], error)
    return state.view(batch, heads, key, -1)


def median_seconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and spread (largest less smallest) over ``repeats`` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times), max(times) - min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=3 * 30 * 52, help="of a block (default: 3 frames of 480 x 832)")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)

    shape = (1, given.tokens, given.heads, given.head_dim)
    draw = torch.Generator().manual_seed(0)
    block = {
        "k": F.normalize(torch.randn(shape, generator=draw), dim=-1),
        "v": torch.randn(shape, generator=draw),
        "g": -0.1 * torch.rand(shape[:3], generator=draw),
        "beta": 2 * torch.rand(shape[:3], generator=draw),
    }
    looped, chunked = token_loop(**block), gated_delta_state(**block)
    error = float((looped - chunked).norm() / looped.norm())
    if not error < 1e-5:
        raise SystemExit(f"The two disagree by {error:.1e}; no figure is worth anything.")

    flops = given.tokens * given.heads * (4 * given.head_dim**2 + 3 * CHUNK * given.head_dim)
    a = torch.randn(2048, 2048, generator=draw)
    product, _ = median_seconds(lambda: a @ a, given.repeats)
    peak = 2 * 2048**3 / product
    loop, loop_spread = median_seconds(lambda: token_loop(**block), max(3, given.repeats // 3))
    ours, spread = median_seconds(lambda: gated_delta_state(**block), given.repeats)
    result = {
        "benchmark": "delta_state",
        "commit": _commit(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": given.threads,
        "dtype": "float32",
        "shape": list(shape),
        "relative_error": error,
        "gflop": flops / 1e9,
        "token_loop_ms": 1e3 * loop,
        "token_loop_spread_ms": 1e3 * loop_spread,
        "chunked_ms": 1e3 * ours,
        "chunked_spread_ms": 1e3 * spread,
        "speed_up": loop / ours,
        "matrix_product_gflops": peak / 1e9,
        "share_of_matrix_product_rate": flops / ours / peak,
    }
    print(f"block of {given.tokens} tokens, {given.heads} heads of {given.head_dim}, {given.threads} threads, float32")
    print(f"in-place token loop {1e3 * loop:8.1f} ms  (spread {1e3 * loop_spread:.1f})")
    print(f"chunked, state only {1e3 * ours:8.1f} ms  (spread {1e3 * spread:.1f})  {loop / ours:.1f}x faster")
    print(
        f"{flops / 1e9:.2f} GFLOP: {flops / ours / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s of a matrix product here "
        f"({100 * flops / ours / peak:.0f} %)"
    )
    print(json.dumps(result))


def _commit() -> str:
    try:
        return subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()

"""``arl2 selfcheck``: does this machine compute what the published code computed?"""

import argparse
from pathlib import Path

from rich.console import Console

# Written out here so that `arl2 --help` needs no torch; a test holds them against the library's own lists.
DTYPES = ("float32", "bfloat16", "float16", "float64")
BACKENDS = ("auto", "naive", "chunked")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "selfcheck",
        help="compare this machine with numbers of the published code",
        description="Run golden rollouts of the published code through the public API and compare every tensor. "
        "Exit code 1 if any is over its limit.",
    )
    parser.add_argument("--goldens", type=Path, metavar="DIR", help="golden folder (default: the packaged set)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to compute in (default: float32)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of the delta-rule kernel (default: auto)")
    parser.add_argument(
        "--round-trip", action="store_true", help="save each model with save_pretrained and load it back first"
    )
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per tensor; 1 if any is over its limit."""
    import torch

    from arl2.evaluation.goldens import packaged_goldens
    from arl2.evaluation.selfcheck import selfcheck
    from arl2.pipeline.devices import checked_device

    console = Console(highlight=False)
    folder = arguments.goldens or packaged_goldens()
    device = checked_device(arguments.device)
    checks = []
    for check in selfcheck(
        folder,
        device=device,
        dtype=getattr(torch, arguments.dtype),
        backend=arguments.backend,
        round_trip=arguments.round_trip,
    ):
        checks.append(check)
        if check.passed and arguments.quiet:
            continue
        verdict = "[green]ok  [/]" if check.passed else "[bold red]OVER[/]"
        console.print(f"{verdict} {check.name:<60} {check.error:9.2e}  limit {check.limit:.0e}", soft_wrap=True)
    failed = [check for check in checks if not check.passed]
    worst = max(checks, key=lambda check: check.error / check.limit)
    console.print(
        f"{len(checks) - len(failed)} of {len(checks)} tensors within their limit on {device} in {arguments.dtype} "
        f"(nearest to it: {worst.name}, {worst.error:.2e} of {worst.limit:.0e})",
        soft_wrap=True,
    )
    return 1 if failed else 0

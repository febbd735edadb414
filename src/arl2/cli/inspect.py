"""``arl2 inspect FILE``: what a weights file is."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from arl2.checkpoints.describe import Description


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "inspect",
        help="say what a weights file is",
        description="Print the layout, sizes, layer plan, parameters, health and memory need of a .pt, a .safetensors "
        "or a folder. Exit code 1 if it holds NaN or infinity.",
    )
    parser.add_argument("file", type=Path, help=".pt, .safetensors or a folder")
    parser.add_argument("--weights", choices=("auto", "ema", "plain"), default="auto", help="which set, if two")
    parser.add_argument("--height", type=int, default=480, help="pixels, for the memory need (default: 480)")
    parser.add_argument("--width", type=int, default=832, help="pixels, for the memory need (default: 832)")
    parser.add_argument(
        "--heads", type=int, help="number of heads, if the file does not tell (head size 128 if not given)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the description; 1 if weights are not finite."""
    from arl2.checkpoints.describe import describe

    settings = {} if arguments.heads is None else {"num_attention_heads": arguments.heads}
    found = describe(
        arguments.file, branch=arguments.weights, height=arguments.height, width=arguments.width, **settings
    )
    Console(highlight=False).print(_table(found))
    return 1 if found.not_finite else 0


def _table(found: "Description") -> Table:
    config = found.config
    table = Table(title=escape(str(found.path)), show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    plan = found.plan
    hybrid = plan.count("H")
    table.add_row("layout", found.layout.value)
    table.add_row("weights", found.branch or "one set")
    for name, count in found.unused.items():
        table.add_row("", f"[dim]not used to generate: {escape(name)} ({count} tensors)[/]")
    table.add_row("layers", f"{_strip(plan)}  {hybrid} of {len(plan)} hybrid ({100 * hybrid / len(plan):.0f} %)")
    heads, head_dim = int(str(config["num_attention_heads"])), int(str(config["attention_head_dim"]))
    table.add_row("width", f"{heads * head_dim} = {heads} heads x {head_dim}; feed-forward {config['ffn_dim']}")
    table.add_row("latent", f"{config['in_channels']} channels, patch {config['patch_size']}")
    table.add_row("text", f"{config['text_len']} rows of {config['text_dim']}")
    table.add_row("blocks", f"of {config['block_frames']} frames; {_window(config)}")
    table.add_row(
        "low rank",
        f"state {config['state_rank']}, feed-forward {config['ffn_rank']} ({config['ffn_rank_layers']} layers)",
    )
    share = 100 * found.low_rank_parameters / found.parameters
    table.add_row("parameters", f"{found.parameters:,} ({found.low_rank_parameters:,} low-rank, {share:.2f} %)")
    table.add_row("stored as", ", ".join(f"{count} tensors {dtype}" for dtype, count in found.dtypes.items()))
    table.add_row("to load", ", ".join(f"{_size(size)} in {dtype}" for dtype, size in found.weight_bytes.items()))
    per_frame = _size(found.memory.cache_per_frame)
    table.add_row(
        "a stream",
        f"{_size(found.memory.states)} of states for ever + {per_frame} per latent frame kept "
        f"({found.height} x {found.width}, half precision)",
    )
    if found.not_finite:
        table.add_row(
            "[red]broken",
            f"[red]{len(found.not_finite)} tensors with NaN or infinity, first {escape(found.not_finite[0])}",
        )
    else:
        table.add_row("health", "all weights finite")
    return table


def _window(config: Mapping[str, object]) -> str:
    """What softmax layers see, and where first frames that stay visible stand."""
    words = f"window {config['window'] or 'full'}, sink {config['sink']}"
    return f"{words} at {config['sink_positions']} positions" if config["window"] and config["sink"] else words


def _strip(plan: str) -> str:
    return "".join(f"[green]{letter}[/]" if letter == "H" else f"[blue]{letter}[/]" for letter in plan)


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"

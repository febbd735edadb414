"""``arl2 inspect MODEL``: what a model or a weights file is."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arl2.cli.checks import check_source, require_model
from arl2.cli.options import Command, Only
from arl2.errors import printable
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.checkpoints.describe import Description


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show layout, sizes, layer plan, parameters, health and memory need of a model or a weights file.

    Exit code 1 if it holds NaN or infinity.

    Attributes:
        height: Height of the video in pixels, for the memory need.
        width: Width of the video in pixels, for the memory need.
        heads: Number of attention heads, if the file does not say (default: heads of size 128).
        as_json: Print JSON instead of a table.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = ("arl2 inspect causal_forcing.pt --weights-branch ema", "arl2 inspect shapes-75 --json")
    source: Annotated[ModelSource, Only("model", "weights", "base", "config", "weights_branch", "lora_alpha")] = field(
        default_factory=ModelSource
    )
    height: int = 480
    width: int = 832
    heads: int | None = None
    as_json: bool = False

    def run(self) -> int:
        """Print the description; 1 if weights are not finite."""
        check_source(self.source)
        found = self._described()
        if self.as_json:
            print(json.dumps(_facts(found), indent=1))
        else:
            Console(highlight=False).print(_table(found))
        return 1 if found.not_finite else 0

    def _described(self) -> "Description":
        from arl2.checkpoints.describe import describe
        from arl2.pipeline.folder import is_saved_pipeline
        from arl2.pipeline.resolve import resolve_source

        weights, base, config = self.source.weights, self.source.base, self.source.config
        named = self.source.model or weights or base
        model = require_model(None if named is None else str(named), "inspect")
        branch = self.source.weights_branch or "auto"
        told: dict[str, Any] = {} if self.heads is None else {"num_attention_heads": self.heads}
        if self.source.lora_alpha is not None:
            told["low_rank_alpha"] = self.source.lora_alpha
        alone = weights in (None, Path(model)) and config is None
        if alone and Path(model).exists() and not is_saved_pipeline(model):
            return describe(model, branch=branch, height=self.height, width=self.width, **told)
        found = resolve_source(replace(self.source, model=model), heads=self.heads, transformer_alone=True).weights
        return describe(found.path, branch=found.branch, height=self.height, width=self.width, **found.settings)


def _facts(found: "Description") -> dict[str, Any]:
    facts = {**asdict(found), "path": str(found.path), "layout": found.layout.value, "layer_plan": found.plan}
    return json.loads(json.dumps(facts, default=str))


def _table(found: "Description") -> Table:
    config = found.config
    table = Table(title=_safe(str(found.path)), show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("layout", found.layout.value)
    table.add_row("weights", found.branch or "one set")
    for name, count in found.unused.items():
        table.add_row("", f"[dim]not used to generate: {_safe(name)} ({count} tensors)[/]")
    table.add_row("layers", _strip(found.plan))
    heads, head_dim = int(str(config["num_attention_heads"])), int(str(config["attention_head_dim"]))
    table.add_row("width", f"{heads * head_dim} = {heads} heads x {head_dim}; feed-forward {config['ffn_dim']}")
    table.add_row("latent", f"{config['in_channels']} channels, patch {config['patch_size']}")
    table.add_row("text", f"{config['text_len']} rows of {config['text_dim']}")
    table.add_row("blocks", f"of {config['block_frames']} frames; {_window(config)}")
    if config["state_horizon"] is not None:
        table.add_row("states", f"reach back {config['state_horizon']} latent frames")
    table.add_row(
        "LoRA rank",
        f"state {config['state_rank']}, feed-forward {config['ffn_rank']} ({config['ffn_rank_layers']} layers)",
    )
    if config["state_rank"] or config["ffn_rank"]:
        table.add_row("LoRA alpha", _alpha(found))
    share = 100 * found.low_rank_parameters / found.parameters
    table.add_row("parameters", f"{found.parameters:,} ({found.low_rank_parameters:,} LoRA, {share:.2f} %)")
    scaled = f"; {found.scaled} with a scale" if found.scaled else ""
    table.add_row("stored as", ", ".join(f"{count} tensors {dtype}" for dtype, count in found.dtypes.items()) + scaled)
    table.add_row("to load", ", ".join(f"{_size(size)} in {dtype}" for dtype, size in found.weight_bytes.items()))
    per_frame = _size(found.memory.cache_per_frame)
    table.add_row(
        "a stream",
        f"{_size(found.memory.states)} of states for ever + {per_frame} per latent frame kept "
        f"({found.height} x {found.width}, half precision)",
    )
    if found.not_finite:
        first = _safe(found.not_finite[0])
        table.add_row("[red]broken", f"[red]{len(found.not_finite)} tensors with NaN or infinity, first {first}")
    else:
        table.add_row("health", "all weights finite")
    return table


def _alpha(found: "Description") -> str:
    alpha = found.config["low_rank_alpha"]
    if alpha is None:
        return "twice the rank"
    return (
        f"{alpha:g}, the published default: the file does not say (--lora-alpha)"
        if found.alpha_assumed
        else f"{alpha:g}"
    )


def _window(config: Mapping[str, object]) -> str:
    """What softmax layers attend to, and where sinks stand."""
    words = f"window {config['window'] or 'full'}, sink {config['sink']}"
    return f"{words} at {config['sink_positions']} positions" if config["window"] and config["sink"] else words


def _strip(plan: str) -> str:
    """The layer plan, a colour for each kind, and how many layers are of which."""
    from arl2.attention.plan import letters, plan_summary

    colours = dict(zip(letters(), itertools.cycle(("blue", "green", "magenta", "cyan", "yellow"))))  # endless
    return "".join(f"[{colours[letter]}]{letter}[/]" for letter in plan) + f"  {plan_summary(plan)}"


def _safe(text: str) -> str:
    """Names of other people's files, without control characters and markup."""
    return escape(printable(text))


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"

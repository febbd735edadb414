"""``arl2 convert MODEL -o FOLDER``: a softmax model made hybrid, and what that changes in numbers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from arl2.cli import words
from arl2.cli.sources import add_source_options, source_of
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.model.transformer import CausalWanTransformer3DModel
    from arl2.training.conversion.report import ConversionReport

_KINDS = {"H": "hybrid", "S": "softmax"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "convert",
        help="make a softmax model hybrid",
        description="Write a hybrid model: every pretrained weight kept, the new parameters at their start values. "
        "Nothing is trained; that is 'arl2 train align' and 'arl2 train distill'.",
    )
    add_source_options(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="new folder of the model")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--layers", metavar="LIST", help="such as 0-21,25, both ends included")
    which.add_argument(
        "--fraction", type=float, metavar="F", help="share of all layers: the first, or those a ranking puts first"
    )
    which.add_argument("--plan", metavar="HHSH", help="one letter a layer: H hybrid, S softmax")
    parser.add_argument("--ranking", type=Path, metavar="FILE", help="of 'arl2 sensitivity', with --fraction")
    parser.add_argument("--keep", metavar="LIST", help="layers that stay softmax, such as 0,29")
    new = parser.add_argument_group("new parameters")
    new.add_argument("--state-rank", type=words.whole_from_zero, metavar="R", help="low rank of states (default: 16)")
    new.add_argument("--ffn-rank", type=words.whole_from_zero, metavar="R", help="of feed-forwards (default: 16)")
    new.add_argument("--alpha", type=float, help="scale of both, over the rank (default: twice the rank)")
    new.add_argument("--ffn-layers", choices=("hybrid", "all"), help="whose feed-forward has one (default: hybrid)")
    new.add_argument("--seed", type=words.whole_from_zero, default=0, help="of the start values (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, write, report."""
    from arl2.checkpoints.conversion import PUBLISHED_RANK, convert
    from arl2.pipeline.rewriting import check_new_folder, write_pipeline
    from arl2.training.conversion.report import report_conversion

    if arguments.ranking is not None and arguments.fraction is None:
        raise ConfigError("--ranking goes with --fraction, which says how many layers of it; add that.")
    check_new_folder(arguments.output)
    source = source_of(arguments)
    model = source.weights.exact_transformer()
    layers = _layers(arguments, model)
    # A model that has hybrid layers already gives the others what its own have.
    own = "H" in model.config.layer_plan
    ranks = {
        name: given if given is not None else int(model.config[name]) if own else PUBLISHED_RANK
        for name, given in (("state_rank", arguments.state_rank), ("ffn_rank", arguments.ffn_rank))
    }
    if own and (arguments.alpha is not None or arguments.ffn_layers is not None):
        raise ConfigError(
            f"The model has hybrid layers already (plan {model.config.layer_plan}), whose scale the others share; "
            "leave --alpha and --ffn-layers out."
        )
    made = convert(
        model,
        layers,
        **ranks,
        low_rank_alpha=arguments.alpha,
        ffn_rank_layers=arguments.ffn_layers or "hybrid",
        seed=arguments.seed,
    )
    report = report_conversion(model.config, made, source.settings)
    write_pipeline(source, made.model, arguments.output)
    Console(highlight=False).print(_shown(report, arguments.output))
    return 0


def _layers(arguments: argparse.Namespace, model: "CausalWanTransformer3DModel") -> list[int]:
    """Indices of the hybrid layers, those that are hybrid already among them.

    Raises:
        ConfigError: what was asked does not fit the model, or nothing is left to convert.
    """
    from arl2.attention.plan import parse_plan
    from arl2.checkpoints.layer_choice import parse_layers, read_ranking, share_of_layers

    before = str(model.config.layer_plan)
    count = len(before)
    keep = [] if arguments.keep is None else parse_layers(arguments.keep, count)
    if arguments.plan is not None:
        asked = [i for i, letter in enumerate(parse_plan(arguments.plan, count)) if letter == "H"]
        both = sorted(set(asked) & set(keep))
        if both:
            raise ConfigError(f"The plan {arguments.plan} makes layer {both[0]} hybrid and --keep leaves it; drop one.")
        return _something(asked, before)
    if arguments.fraction is not None:
        ranking = None if arguments.ranking is None else read_ranking(arguments.ranking)
        return _something(share_of_layers(arguments.fraction, count, keep=keep, ranking=ranking), before)
    return _something([layer for layer in parse_layers(arguments.layers, count) if layer not in keep], before)


def _something(layers: list[int], before: str) -> list[int]:
    if all(before[layer] == "H" for layer in layers):
        raise ConfigError(f"No layer is left to convert: layers {layers} of the plan {before} were asked.")
    return sorted({*layers, *(i for i, letter in enumerate(before) if letter == "H")})


def _shown(report: "ConversionReport", folder: Path) -> Group:
    hybrid, layers = report.plan_after.count("H"), len(report.plan_after)
    head = Table(title=escape(f"{folder}"), show_header=False, title_justify="left", box=None)
    head.add_column(style="bold")
    head.add_column(overflow="fold")
    head.add_row("plan", f"{report.plan_before} -> {report.plan_after}  {hybrid} of {layers} hybrid")
    head.add_row("pretrained", f"{report.pretrained:,} parameters, all kept")
    head.add_row("new", f"{report.new:,} ({100 * report.share(report.new):.2f} % of the pretrained), untrained")
    for stage, trained, what in ((1, report.stage_1, "align"), (2, report.stage_2, "distill")):
        share = 100 * report.share(trained)
        head.add_row(f"stage {stage}", f"{trained:,} train ({share:.2f} % of the pretrained): arl2 train {what}")

    kinds = Table(box=None, pad_edge=False)
    for name in ("layers", "", "parameters each", "new", "train in stage 1", "in stage 2"):
        kinds.add_column(name, justify="left" if name == "layers" else "right")
    for kind in report.kinds:
        numbers = (kind.parameters, kind.new, kind.stage_1, kind.stage_2)
        kinds.add_row(_KINDS[kind.letter], str(kind.layers), *(f"{number:,}" for number in numbers))

    largest = max(cost.flops_before for cost in report.costs)
    unit, one = ("TFLOP", 1e12) if largest >= 1e12 else ("GFLOP", 1e9)
    seen = "the whole past" if report.window is None else f"{report.window} latent frames"
    costs = Table(
        box=None,
        pad_edge=False,
        title=f"The last block at {report.width} x {report.height}, softmax layers seeing {seen}: {report.passes} "
        "denoising passes and the clean one; memory of its stream in half precision",
        title_justify="left",
    )
    for name in ("video frames", f"{unit} before", "after", "", "MB before", "after", ""):
        costs.add_column(name, justify="right")
    for cost in report.costs:
        costs.add_row(
            str(cost.video_frames),
            f"{cost.flops_before / one:,.2f}",
            f"{cost.flops_after / one:,.2f}",
            f"{cost.flops_before / cost.flops_after:.2f}x",
            f"{cost.memory_before / 1e6:,.2f}",
            f"{cost.memory_after / 1e6:,.2f}",
            f"{cost.memory_before / cost.memory_after:.2f}x",
        )
    return Group(head, "", kinds, "", costs)

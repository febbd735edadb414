"""``arl2 export MODEL -o FOLDER | FILE``: a model as a folder for ``from_pretrained``, or in a published layout."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli.sources import add_source_options, source_of
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.model.transformer import CausalWanTransformer3DModel

_FILES = (".pt", ".safetensors")
_LAYOUTS = ("arl2", "wan")
# What no tensor of a published file tells; whoever loads it says so, or a base or a config does.
_UNTOLD = ("block_frames", "window", "sink", "text_len", "eps")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "export",
        help="write a model as a folder, or as a published .pt",
        description="Write a model where other programs read it: a folder for from_pretrained, or one file in the key "
        "layout of ARL2 (.pt with 'generator', or .safetensors). Every tensor keeps its dtype.",
    )
    add_source_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER|FILE", help=".pt, .safetensors, or a new folder"
    )
    parser.add_argument(
        "--merge-low-rank",
        action="store_true",
        help="fold the feed-forwards' low-rank changes into their weights; those of state branches stay, for their "
        "weights serve the attention inside a block, too",
    )
    parser.add_argument("--layout", choices=_LAYOUTS, help="of a file: arl2 (default), or wan for softmax models")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write, and say what was merged and what a file does not tell."""
    from arl2.checkpoints.export import export_checkpoint
    from arl2.checkpoints.merging import merge_lora
    from arl2.pipeline.rewriting import check_new_folder, write_pipeline

    output: Path = arguments.output
    to_file = output.suffix in _FILES
    if arguments.layout is not None and not to_file:
        raise ConfigError(f"--layout goes with a file ({' or '.join(_FILES)}), but '{output}' came; leave it out.")
    if not to_file:
        check_new_folder(output)
    elif output.exists():
        raise ConfigError(f"'{output}' is there already; choose another name.")
    source = source_of(arguments, alone=to_file)
    model = source.weights.exact_transformer()
    said = []
    if arguments.merge_lora:
        result = merge_lora(model)
        if not result.merged:
            raise ConfigError(
                f"The feed-forwards of '{arguments.model}' have no low-rank changes; leave --merge-low-rank out."
            )
        model = result.model
        said.append(
            f"merged {result.merged} low-rank changes of feed-forwards ({result.parameters_saved:,} parameters less); "
            f"{result.kept} of state branches stay"
        )
    if to_file:
        export_checkpoint(model, output, layout="wan" if arguments.layout == "wan" else "arl2")
        said.append(_untold(model))
    else:
        write_pipeline(source, model, output)
    print(f"wrote {output} ({_bytes_of(output) / 1e6:,.1f} MB)")
    for sentence in said:
        print(sentence)
    return 0


def _untold(model: "CausalWanTransformer3DModel") -> str:
    settings = ", ".join(f"{name} {model.config[name]}" for name in _UNTOLD)
    return f"the file does not tell its {settings}: a base, a model's name or a config does when it is loaded"


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)

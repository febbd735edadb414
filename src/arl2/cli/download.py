"""``arl2 download NAME``: fetch a named model from the Hugging Face Hub, or what is missing of it."""

import argparse
import sys

from arl2.model.registry import find_card


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "download",
        help="fetch a named model",
        description="Fetch a named model into the Hugging Face cache (HF_HOME says where). Interrupted, run it again: "
        "files that came whole are kept. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.",
    )
    parser.add_argument("name", metavar="NAME", help="see arl2 models")
    parser.add_argument("--revision", help="branch, tag or commit of the weights' repository (default: main)")
    parser.add_argument("--quiet", action="store_true", help="print only where it is")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch, and print where it is: the base folder, then the transformer's weights if they are a file."""
    card = find_card(arguments.name)
    from arl2.checkpoints.hub import download

    def report(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr)

    if card.base is not None:
        report(f"{card.name}: about {card.disk_bytes / 1e9:.0f} GB, {card.licence}")
    found = download(card, report=report, revision=arguments.revision, quiet=arguments.quiet)
    print(found.base)
    if found.weights is not None:
        print(found.weights)
    elif card.kind == "hybrid by path":
        report(
            f"The weights of {card.name} are not out: this is what they will need; give their path when you have it."
        )
    return 0

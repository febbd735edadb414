"""``arl2 download NAME``: fetch a named model from the Hugging Face Hub, or what is missing of it."""

import sys
from dataclasses import dataclass
from typing import ClassVar

from arl2.cli.options import Command
from arl2.model.registry import find_card


@dataclass(frozen=True, kw_only=True)
class Download(Command):
    """Fetch a named model into the Hugging Face cache (HF_HOME says where).

    Re-run the command to resume: complete files are kept. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.

    Attributes:
        model: A name that ``arl2 models`` lists.
        revision: Branch, tag or commit of the weights' repository (default: main).
        quiet: Print only where the model is.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = ("arl2 download causal-forcing", "arl2 download causal-forcing --revision main --quiet")
    model: str
    revision: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Print where it is: the base folder, then the transformer's weights if they are a file."""
        card = find_card(self.model)
        from arl2.checkpoints.hub import download

        def report(line: str) -> None:
            if not self.quiet:
                print(line, file=sys.stderr)

        if card.base is not None:
            report(f"{card.name}: about {card.disk_bytes / 1e9:.0f} GB, {card.licence}")
        found = download(card, report=report, revision=self.revision, quiet=self.quiet)
        print(found.base)
        if found.weights is not None:
            print(found.weights)
        elif card.kind == "hybrid by path":
            report(f"The weights of {card.name} are not published yet: these are the parts they need.")
        return 0

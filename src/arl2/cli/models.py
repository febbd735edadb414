"""``arl2 models [NAME]``: the models that have names, and which of them are on this disk."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from arl2.cli.options import Command
from arl2.model.registry import CARDS, ModelCard, find_card

if TYPE_CHECKING:
    from arl2.checkpoints.hub import Presence


@dataclass(frozen=True, kw_only=True)
class Models(Command):
    """List named models: what they are, their licence, what they take, and whether they are on this disk.

    With a name, everything that is known of that model. Touches no network.

    Attributes:
        model: Name of one model, to show everything about it.
        as_json: Print JSON instead of a table.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = ("arl2 models", "arl2 models causal-forcing --json")
    model: str | None = None
    as_json: bool = False

    def run(self) -> int:
        """Print the list, or one card."""
        cards = list(CARDS.values()) if self.model is None else [find_card(self.model)]
        found = {card.name: _presence(card) for card in cards}
        if self.as_json:
            facts = [_facts(card, found[card.name]) for card in cards]
            print(json.dumps(facts if self.model is None else facts[0], indent=1, ensure_ascii=False))
        elif self.model is None:
            Console(highlight=False).print(_list(cards, found))
        else:
            Console(highlight=False).print(_card(cards[0], found[cards[0].name]))
        return 0


def _presence(card: ModelCard) -> "Presence | None":
    """None of a model that ships with the package."""
    if card.base is None:
        return None
    from arl2.checkpoints.hub import presence

    return presence(card)


def _on_disk(found: "Presence | None") -> str:
    if found is None or found.located is not None:
        return "yes"
    return "partly" if found.present else "no"


def _facts(card: ModelCard, found: "Presence | None") -> dict[str, Any]:
    facts: dict[str, Any] = {**asdict(card), "on_disk": _on_disk(found)}
    facts |= facts.pop("settings")
    if found is not None:
        facts["missing"] = list(found.missing)
        facts["base_folder"] = str(found.located.base) if found.located else None
        facts["weights_path"] = str(found.located.weights) if found.located and found.located.weights else None
    return facts


def _list(cards: list[ModelCard], found: dict[str, "Presence | None"]) -> Group:
    """A line of figures for each model, and under it what the model is."""
    name_width = max(len(card.name) for card in cards)

    def line(*columns: str) -> str:
        name, licence, fetch, memory, on_disk = columns
        return f"{name:<{name_width}}  {licence:<16}  {fetch:>8}  {memory:>6}  {on_disk}"

    lines: list[RenderableType] = [Text(line("name", "licence", "to fetch", "memory", "on disk"), style="bold")]
    for card in cards:
        on_disk = _on_disk(found[card.name])
        memory = f"{card.device_bytes / 1e9:.0f} GB" if card.device_bytes >= 1e9 else "<1 GB"
        licence = card.licence.split(" (")[0] if card.licence[:3] != "not" else "not known yet"
        figures = Text(line(card.name, licence, _size(card), memory, on_disk))
        figures.stylize("bold", 0, len(card.name))
        figures.stylize({"yes": "green", "partly": "yellow", "no": "dim"}[on_disk], len(figures) - len(on_disk))
        lines += [figures, Padding(Text(card.summary, style="dim"), (0, 0, 0, 2))]
    lines.append(Text("Sizes are approximate. arl2 models NAME says more: settings, memory, published results."))
    return Group(*lines)


def _card(card: ModelCard, found: "Presence | None") -> Table:
    sampled = card.settings
    table = Table(title=escape(card.name), show_header=False, title_justify="left", box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("what", card.summary)
    table.add_row("kind", card.kind)
    table.add_row("licence", card.licence)
    if card.base is not None:
        table.add_row("base", card.base)
    if card.weights_repo is not None:
        table.add_row("weights", f"{card.weights_repo}: {card.weights_file or 'announced, not out'}")
    table.add_row("blocks", _blocks(card))
    table.add_row("denoising steps", _steps(card))
    table.add_row(
        "video", f"{sampled.height} x {sampled.width}, {sampled.num_frames} video frames, {sampled.fps} per second"
    )
    table.add_row("starts from", "a prompt, or a prompt and an image" if card.image_to_video else "a prompt")
    table.add_row("to fetch", _size(card))
    table.add_row("memory", f"about {card.device_bytes / 1e9:.1f} GB at the settings above; {card.memory_note}")
    table.add_row("on disk", _where(card, found))
    for result in card.results:
        table.add_row(
            "published", f"{result.what}: {result.value} [dim]({escape(result.source)}; not measured here)[/]"
        )
    for note in card.notes:
        table.add_row("note", note)
    return table


def _blocks(card: ModelCard) -> str:
    sampled = card.settings
    first = "" if sampled.first_block_frames is None else f", the first of {sampled.first_block_frames}"
    window = "the whole past" if sampled.window is None else f"a window of {sampled.window}, {card.sink} of them sinks"
    return f"of {card.block_frames} latent frames{first}; softmax layers see {window}"


def _steps(card: ModelCard) -> str:
    sampled = card.settings
    if sampled.solver != "few-step":
        return f"{sampled.solver_steps} steps of a solver, guidance {sampled.guidance_scale}, shift {sampled.shift}"
    first = "" if sampled.first_block_steps is None else f", first block {_words(sampled.first_block_steps)}"
    return f"{_words(sampled.steps)}{first} (before warping with shift {sampled.shift})"


def _where(card: ModelCard, found: "Presence | None") -> str:
    if found is None:
        return "yes, it ships with the package"
    if found.located is not None:
        places = [str(found.located.base), *([str(found.located.weights)] if found.located.weights else [])]
        return escape("yes: " + "\n".join(places))
    missing = f"missing {', '.join(found.missing)}; " if found.present else ""
    return escape(f"{_on_disk(found)}; {missing}arl2 download {card.name}")


def _size(card: ModelCard) -> str:
    return "nothing" if not card.disk_bytes else f"{card.disk_bytes / 1e9:.0f} GB"


def _words(steps: tuple[int, ...]) -> str:
    return " ".join(str(step) for step in steps)

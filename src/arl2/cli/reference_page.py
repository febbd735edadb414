"""The reference of the command line, made of the options: ``python -m arl2.cli.reference_page > docs/cli.md``."""

import re
from collections.abc import Iterator
from itertools import groupby

from arl2.cli.app import ABOUT, GROUPS
from arl2.cli.options import Command, Option, choices_of, described, metavar, notes, options_of, summary

_HEAD = """# Command line

Made from the options by `python -m arl2.cli.reference_page > docs/cli.md`; a test holds the two against each other.

`arl2 COMMAND --help` prints the same for one command. Names of options may be written with underscores
(`--num_frames`). Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 interrupted.

To try out a list of commands before the real run, set `ARL2_MINIATURE=1`: videos have few frames and one denoising
step, models that are not embedded a picture of 32 x 48 pixels, streams an end; training is a dry run, and a benchmark
takes its tiny preset."""


def page() -> str:
    """The whole page."""
    return "\n\n".join([_HEAD, *_contents(), *(part for title in GROUPS for part in _group(title))]) + "\n"


def _contents() -> Iterator[str]:
    links = {title: [f"[`{name}`](#arl2-{name.replace(' ', '-')})" for name in GROUPS[title]] for title in GROUPS}
    yield "\n".join(["| | |", "|---|---|", *(f"| {title} | {', '.join(links[title])} |" for title in GROUPS)])


def _group(title: str) -> Iterator[str]:
    yield f"## {title}"
    yield from {ABOUT[name.split()[0]]: None for name in GROUPS[title] if " " in name}
    for name, command in GROUPS[title].items():
        yield f"### arl2 {name}"
        yield summary(command)
        yield "```sh\n" + "\n".join(command.examples) + "\n```"
        yield from _tables(command)


def _tables(command: type[Command]) -> Iterator[str]:
    """A table for each heading, arguments first."""
    options = [option for option in options_of(command) if not option.hidden]
    first = [option for option in options if option.name in command.positional]
    yield from _table("Arguments", first, command)
    others = [option for option in options if option not in first]
    for group, listed in groupby(others, key=lambda option: option.group):
        yield from _table(group, list(listed), command)


def _table(heading: str, options: list[Option], command: type[Command]) -> Iterator[str]:
    if not options:
        return
    note = notes(heading)
    rows = [f"| {_names(option, command)} | {_text(option)} |" for option in options]
    yield "\n".join([f"| {heading} | {note} |", "|---|---|", *rows])


def _names(option: Option, command: type[Command]) -> str:
    value = metavar(option)
    shown = [f"`{name}{f' {value}' if value else ''}`".replace("|", r"\|") for name in option.names]
    if option.name in command.positional:
        label = option.name.removesuffix("s").upper() + ("..." if option.name.endswith("s") else "")
        return f"`{label}`" if label.endswith("...") else f"`{label}` or {shown[0]}"
    return ", ".join(shown)


def _text(option: Option) -> str:
    accepted = choices_of(option.hint) if option.read is None else ()
    choices = f" One of: {', '.join(f'`{word}`' for word in accepted)}." if accepted else ""
    needed = " Required." if option.required else ""
    return re.sub(r"(?<!`)(--[a-z][a-z-]+)", r"`\1`", described(option)).replace("|", r"\|") + choices + needed


if __name__ == "__main__":
    print(page(), end="")

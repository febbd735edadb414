"""Command lines that people typed before: spellings with underscores, and options that have another name today."""

from collections.abc import Sequence
from itertools import pairwise

from arl2.errors import ConfigError

# Still accepted, and no longer listed.
_RENAMED = {
    "export": {"--merge-low-rank": "--merge-lora"},
    "rollouts": {"--prompts": "--prompts-file"},
    "sensitivity": {"--prompts": "--prompts-file", "--count": "--suggest"},
    "shapes score": {"--prompts": "--count"},
}
_BRANCHES = ("auto", "ema", "plain")


def normalised(words: Sequence[str], command: str) -> list[str]:
    """The words of a command line as the parser knows them.

    Args:
        words: What follows ``arl2``.
        command: Which command they begin with, such as ``shapes score``; empty if none.

    Raises:
        ConfigError: An option that means something else today, with its new name.
    """
    names = _RENAMED.get(command, {})
    known: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return [*known, *words[number:]]
        if word == "-" and known and known[-1].startswith("-") and "=" not in known[-1]:
            known[-1] += "-" if not known[-1].startswith("--") else "=-"  # a value, not an option without its name
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            known.append(names.get(name, name) + equals + value)
        else:
            known.append(word)
    _refuse_other_meanings(known, command)
    return known


def _refuse_other_meanings(words: list[str], command: str) -> None:
    given = dict(pairwise([*words, ""]))
    given |= {name: value for name, equals, value in (word.partition("=") for word in words) if equals}
    if command == "sensitivity" and "--frames" in given:
        raise ConfigError(
            "--frames counts video frames in every command; 'arl2 sensitivity' counts latent frames: "
            f"give --latent-frames {given['--frames']}."
        )
    if command == "inspect" and given.get("--weights") in _BRANCHES:
        raise ConfigError(f"--weights is a file; which weights of a file is --weights-branch {given['--weights']}.")

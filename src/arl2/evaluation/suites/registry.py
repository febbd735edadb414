"""Suites and sets of prompts by name. Extensions add theirs; nothing large is imported before it is used."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arl2.extensions import Registry, named

if TYPE_CHECKING:
    from arl2.evaluation.suites.suite import Suite


@dataclass(frozen=True)
class PromptSet:
    """Prompts for whoever gives none.

    Attributes:
        place: ``"module:function"``; called as ``function(count, seed=...)`` it gives that many prompts.
        text: ``"module:Class"`` of the text part that understands them.
    """

    place: str
    text: str


_HERE = "arl2.evaluation.suites"
SUITES: Registry[str] = Registry(
    "suite",
    {
        "video": f"{_HERE}.video:VideoSuite",
        "teacher": f"{_HERE}.teacher:TeacherSuite",
        "vbench": f"{_HERE}.vbench:VBenchSuite",
    },
)
PROMPT_SETS: Registry[PromptSet] = Registry("set of prompts")


def register_suite(name: str, place: str) -> None:
    """Add a suite class, ``"module:Class"``; raises ``ConfigError`` if another has the name."""
    SUITES.register(name, place)


def register_prompts(name: str, prompts: PromptSet) -> None:
    """Add a set of prompts; raises ``ConfigError`` if another has the name."""
    PROMPT_SETS.register(name, prompts)


def open_suite(name: str) -> "Suite":
    """The suite of that name; raises ``ConfigError`` with the nearest one if there is none."""
    return named(SUITES.find(name))()

"""The training tasks that ``arl2 train`` knows, by name. Plain values: a task's module is imported when it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arl2.extensions import Registry, load_extensions, named

_CONVERSION = "arl2.training.conversion"


@dataclass(frozen=True)
class TrainingTask:
    """A thing to train.

    Attributes:
        name: what ``arl2 train`` calls it.
        description: what it trains, after "Train", and the settings that have no default.
        config: the dataclass of its settings, ``"module:Class"``; one field is ``loop``, a ``LoopConfig``.
        task: the ``Task``, ``"module:Class"``, made from the settings and ``device=``.
        stage: of a conversion; ``--dry-run`` then counts what a run takes on GPUs.
    """

    name: str
    description: str
    config: str
    task: str
    stage: Literal[1, 2] | None = None


_BUILT_IN = (
    TrainingTask(
        "align",
        "hybrid layers, each to give what the softmax layer in its place gives (stage 1; give clips=[FOLDER])",
        f"{_CONVERSION}.align:AlignConfig",
        f"{_CONVERSION}.align:AlignTask",
        stage=1,
    ),
    TrainingTask(
        "dmd",
        "a student to match in few steps what a teacher samples in many (DMD; give teacher, start_from and clips)",
        f"{_CONVERSION}.dmd:DmdConfig",
        f"{_CONVERSION}.dmd:DmdTask",
    ),
    TrainingTask(
        "distill",
        "the whole hybrid model to follow its teacher (stage 2; give aligned=FOLDER and clips=[FOLDER])",
        f"{_CONVERSION}.distill:DistillConfig",
        f"{_CONVERSION}.distill:DistillTask",
        stage=2,
    ),
)
TASKS: Registry[TrainingTask] = Registry("training task", {task.name: task for task in _BUILT_IN})
_FORMER_NAMES: dict[str, str] = {}
_VARIANTS: dict[str, dict[str, TrainingTask]] = {}


def register_task(task: TrainingTask, *, formerly: tuple[str, ...] = ()) -> None:
    """Add a training task, and names it had before that are still accepted; ``ConfigError`` if the name is taken."""
    TASKS.register(task.name, task)
    _FORMER_NAMES.update(dict.fromkeys(formerly, task.name))


def register_variant(setting: str, task: TrainingTask) -> None:
    """Let ``task`` train in place of the one of its name where the settings hold ``setting``.

    So a world with clips of its own keeps its own settings for what is trained alike everywhere.
    """
    _VARIANTS.setdefault(task.name, {})[setting] = task


def find_task(name: str, settings: Mapping[str, Any] | None = None) -> TrainingTask:
    """The training task of that name or former name, for these settings; raises ``ConfigError`` if there is none."""
    load_extensions()
    task = TASKS.find(_FORMER_NAMES.get(name, name))
    variants = [one for setting, one in _VARIANTS.get(task.name, {}).items() if setting in (settings or {})]
    return variants[0] if variants else task


def former_names(name: str) -> tuple[str, ...]:
    """Names that a task had before."""
    load_extensions()
    return tuple(former for former, now in _FORMER_NAMES.items() if now == name)


def all_tasks() -> list[TrainingTask]:
    """Every task with its variants, in the order they are listed in."""
    return [one for task in TASKS.values() for one in (task, *_VARIANTS.get(task.name, {}).values())]


def task_classes(task: TrainingTask) -> tuple[type[Any], type[Any]]:
    """Config and task class; only their modules are imported."""
    return named(task.config), named(task.task)

"""What an evaluation will do: every subject's items in units, and a fingerprint that a resumed run must share."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from arl2.errors import ConfigError
from arl2.evaluation.suites.registry import PROMPT_SETS
from arl2.evaluation.suites.suite import Item, Subject, Suite, SuiteOptions, VideoFile
from arl2.extensions import named
from arl2.version import __version__


@dataclass(frozen=True)
class Unit:
    """What one process computes at a time and writes whole: some items of one subject.

    Attributes:
        name: of its record.
        subject: its number.
        items: of one replicate and length, computed together: the same in every run, as sums depend on what is
            computed together.
        videos: of a folder, one for each item.
    """

    name: str
    subject: int
    items: tuple[Item, ...]
    videos: tuple[VideoFile, ...] = ()


@dataclass(frozen=True)
class Plan:
    """An evaluation, before any work.

    Attributes:
        suite: its name.
        subjects: the first is what the others are compared with.
        options: with the prompts filled in.
        items: of all subjects.
        units: in order.
        missing: of folders: (subject, item, why) of items that it has no video for.
        notes: sentences for the report.
        prompt_text: ``"module:Class"`` of the text part that the prompts need; None for given prompts.
    """

    suite: str
    subjects: tuple[Subject, ...]
    options: SuiteOptions
    items: tuple[Item, ...]
    units: tuple[Unit, ...]
    missing: tuple[tuple[int, Item, str], ...]
    notes: tuple[str, ...]
    prompt_text: str | None
    device: str
    dtype: str | None

    def to_mapping(self) -> dict[str, Any]:
        """Everything that decides the results, as plain values."""
        return {
            "arl2": __version__,
            "suite": self.suite,
            "options": _plain(self.options),
            "subjects": [_plain(subject) for subject in self.subjects],
            "units": [[unit.name, unit.subject, [asdict(item) for item in unit.items]] for unit in self.units],
            "device": self.device,
            "dtype": self.dtype,
        }

    @property
    def fingerprint(self) -> str:
        """Of ``to_mapping``: runs of one fingerprint give the same results."""
        return hashlib.sha256(json.dumps(self.to_mapping(), sort_keys=True).encode()).hexdigest()


def make_plan(
    suite: Suite,
    subjects: Sequence[Subject],
    options: SuiteOptions,
    *,
    batch: int,
    device: str = "cpu",
    dtype: str | None = None,
) -> Plan:
    """Choose the prompts, and cut the work into units of at most ``batch`` items.

    Raises:
        ConfigError: subjects that the suite cannot have, two of one label, no prompts, or a folder that has no video
            in common with the others.
    """
    labels = [subject.label for subject in subjects]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"'{repeated}' is given twice; give each model or folder once, or NAME:window=9 for another.")
    suite.check(options, subjects)
    options, prompt_text = _with_prompts(suite, subjects, options)
    items = suite.items(options)
    units: list[Unit] = []
    missing: list[tuple[int, Item, str]] = []
    for number, subject in enumerate(subjects):
        if subject.kind == "videos":
            there = {(video.prompt, video.replicate): video for video in subject.videos}
            own = [item for item in items if (item.prompt, item.replicate) in there]
            lacking = [item for item in items if (item.prompt, item.replicate) not in there]
            missing += [(number, item, "no video of this prompt and seed") for item in lacking]
            if not own:
                raise ConfigError(
                    f"'{subject.label}' has no video of the prompts that are evaluated, such as "
                    f"'{items[0].prompt[:60]}'; its own are such as '{subject.videos[0].prompt[:60]}'. Correct its "
                    "manifest.jsonl, or leave it out."
                )
            for first in range(0, len(own), batch):
                part = tuple(own[first : first + batch])
                videos = tuple(there[item.prompt, item.replicate] for item in part)
                units.append(Unit(f"{number:02d}-{len(units):05d}", number, part, videos))
            continue
        for group in _groups(items):
            for first in range(0, len(group), batch):
                part = tuple(group[first : first + batch])
                units.append(Unit(f"{number:02d}-{len(units):05d}", number, part))
    notes = _unused(subjects, items)
    return Plan(
        suite.name,
        tuple(subjects),
        options,
        items,
        tuple(units),
        tuple(missing),
        notes,
        prompt_text,
        device,
        dtype,
    )


def _with_prompts(suite: Suite, subjects: Sequence[Subject], options: SuiteOptions) -> tuple[SuiteOptions, str | None]:
    """Given prompts, else those of the folders, else an installed set's; and the text part that the last needs."""
    if not suite.has_prompts:
        return options, None
    if options.prompts:
        prompts = [prompt for prompt, _ in options.prompts]
        if repeated := next((one for one in prompts if prompts.count(one) > 1), None):
            raise ConfigError(f"The prompt '{repeated[:60]}' is given twice; use --seeds for several videos of one.")
        return options, None
    folders = [subject for subject in subjects if subject.kind == "videos"]
    if folders:
        pairs = tuple(dict.fromkeys((video.prompt, video.replicate) for one in folders for video in one.videos))
        prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
        seeds = 1 + max(replicate for _, replicate in pairs)
        return replace(options, prompts=tuple((one, None) for one in prompts), pairs=pairs, seeds=seeds), None
    if not PROMPT_SETS:
        raise ConfigError("Give prompts: --prompts-file FILE.")
    chosen = next(iter(PROMPT_SETS.values()))
    prompts = named(chosen.place)(options.count, seed=options.seed)
    return replace(options, prompts=tuple((one, None) for one in prompts)), chosen.text


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Items of one replicate and length, in their order."""
    groups: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.replicate, item.length), []).append(item)
    return list(groups.values())


def _unused(subjects: Sequence[Subject], items: Sequence[Item]) -> tuple[str, ...]:
    wanted = {(item.prompt, item.replicate) for item in items}
    notes = []
    for subject in subjects:
        extra = [video for video in subject.videos if (video.prompt, video.replicate) not in wanted]
        if extra:
            notes.append(
                f"{len(extra)} videos of '{subject.label}' are of other prompts or seeds and not evaluated, first "
                f"'{extra[0].path.name}'."
            )
    return tuple(notes)


def _plain(record: Any) -> Any:
    return json.loads(json.dumps(asdict(record), default=str))

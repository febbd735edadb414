"""What is in no mean, and why: one by one for the record, in groups for people."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arl2.evaluation.wording import counted

# Names of files in reasons: reasons that differ in these only are one.
_QUOTED = re.compile(r"'[^']*'")
_NAMED, _REASONS = 6, 3


@dataclass(frozen=True)
class Exclusion:
    """A value that is not in the means, and why. ``metric`` is empty where the whole video is left out."""

    subject: str
    item: str
    replicate: int
    metric: str
    why: str


@dataclass(frozen=True)
class ExclusionGroup:
    """Videos of one subject that lack the same for the same reason.

    Attributes:
        subject: its label.
        metrics: that have no value; empty where the whole videos are left out.
        why: the reason; where it names a file, that of the first video.
        count: of videos.
        first: item of the first video.
    """

    subject: str
    metrics: tuple[str, ...]
    why: str
    count: int
    first: str

    @property
    def what(self) -> str:
        """What is left out, in words."""
        if not self.metrics:
            return "the whole video"
        rest = len(self.metrics) - _NAMED
        return ", ".join(self.metrics[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")

    @property
    def line(self) -> str:
        """All of it on one line, without what a terminal would obey."""
        such = f", such as '{self.first[:60]}'" if self.first else ""
        line = f"{self.subject}: {self.what}, {counted(self.count, 'video')}{such}: {self.why}"
        return "".join(one if one.isprintable() else " " for one in line)


def grouped(excluded: Iterable[Exclusion], subjects: Sequence[str]) -> tuple[ExclusionGroup, ...]:
    """Groups of exclusions, whole videos before single metrics, then in the order of subjects.

    Metrics that the same videos lack for the same reason are one group.
    """
    single: dict[tuple[str, str, str], list[Exclusion]] = {}
    for one in excluded:
        single.setdefault((one.subject, one.metric, _QUOTED.sub("'…'", one.why)), []).append(one)
    merged: dict[tuple[object, ...], tuple[list[str], list[Exclusion]]] = {}
    for (subject, metric, alike), ones in single.items():
        videos = tuple((one.item, one.replicate) for one in ones)
        metrics, _ = merged.setdefault((subject, not metric, alike, videos), ([], ones))
        metrics += [metric] if metric else []
    groups = [
        ExclusionGroup(ones[0].subject, tuple(metrics), ones[0].why, len(ones), ones[0].item)
        for metrics, ones in merged.values()
    ]
    order = {label: number for number, label in enumerate(subjects)}
    return tuple(sorted(groups, key=lambda one: (bool(one.metrics), order[one.subject])))


def nothing_notes(groups: Sequence[ExclusionGroup], empty: Iterable[str]) -> list[str]:
    """A sentence for each subject without any value: why it has none."""
    notes = []
    for label in empty:
        own = [one for one in groups if one.subject == label]
        reasons = [f"{one.why} ({counted(one.count, 'video')})" for one in own[:_REASONS]]
        notes.append(f"Nothing of '{label}' could be evaluated: {'; '.join(reasons) or 'it has no videos'}.")
    return notes

"""From records to results: means with intervals, paired differences from the first subject, curves, exclusions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arl2.evaluation.suites.bootstrap import FEWEST, Estimate, estimate, estimate_difference
from arl2.evaluation.suites.exclusions import Exclusion, ExclusionGroup, grouped, nothing_notes
from arl2.evaluation.suites.plan import Plan
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.run import read_records
from arl2.evaluation.suites.suite import Item, Measured, Metric
from arl2.evaluation.wording import counted
from arl2.version import __version__

_DIGITS = 6  # significant digits of results: more than any machine repeats of another


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        plan: what was done.
        metrics: of the suite, points of curves included, in order.
        measured: by subject's label and item (key, replicate, length).
        means: by label and metric.
        by_seed: the same, a mean for each replicate.
        differences: from the first subject, on the prompts that both have, by label and metric.
        excluded: what has no value.
        models: hash of each model, by label.
    """

    plan: Plan
    metrics: tuple[Metric, ...]
    measured: Mapping[str, Mapping[tuple[str, int, int], Measured]]
    means: Mapping[str, Mapping[str, Estimate]]
    by_seed: Mapping[str, Mapping[str, tuple[float, ...]]]
    differences: Mapping[str, Mapping[str, Estimate]]
    excluded: tuple[Exclusion, ...]
    models: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the subjects, in order."""
        return tuple(subject.label for subject in self.plan.subjects)

    @property
    def left_out(self) -> tuple[ExclusionGroup, ...]:
        """``excluded`` in groups of one reason, whole videos first."""
        return grouped(self.excluded, self.labels)

    @property
    def settings(self) -> dict[str, Any]:
        """What was evaluated, in numbers."""
        return _settings(self.plan)

    def better(self, label: str, metric: Metric) -> bool | None:
        """Whether a subject is better (True) or worse than the first one by more than chance; None: not known.

        Of fewer than ``FEWEST`` prompts it is never known.
        """
        found = self.differences.get(label, {}).get(metric.name)
        if found is None or metric.better == "neither" or not found.is_clear:
            return None
        return (found.mean > 0) == (metric.better == "high")

    def curve(self, label: str, name: str) -> list[tuple[float, Estimate]]:
        """Points of a curve, in their order."""
        prefix = f"{name}@"
        points = [
            (float(one[len(prefix) :]), value)
            for one, value in self.means[label].items()
            if one[: len(prefix)] == prefix
        ]
        return sorted(points, key=lambda point: point[0])

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON; two runs of one plan give the same."""
        return {
            "arl2": __version__,
            "plan": self.plan.fingerprint,
            "suite": self.plan.suite,
            "baseline": self.labels[0],
            "settings": self.settings,
            "subjects": [
                {
                    "label": subject.label,
                    "kind": subject.kind,
                    "model_hash": self.models.get(subject.label),
                    "sampling": {k: v for k, v in vars(subject.sampling).items() if v not in (None, "settings")}
                    | ({"window": None} if subject.sampling.window is None else {}),
                }
                for subject in self.plan.subjects
            ],
            "metrics": [
                {"name": one.name, "what": one.what, "better": one.better, "share": one.is_share}
                for one in self.metrics
            ],
            "means": {
                label: {
                    name: {**_estimate(value), "by_seed": [_round(one) for one in self.by_seed[label][name]]}
                    for name, value in values.items()
                }
                for label, values in self.means.items()
            },
            "differences": {
                label: {name: _estimate(value) for name, value in values.items()}
                for label, values in self.differences.items()
            },
            "videos": [
                {
                    "item": item.key,
                    "prompt": item.prompt,
                    "seed": item.seed if self.plan.has_seeds else None,
                    "replicate": item.replicate,
                    "length": item.length,
                    "values": {
                        label: {name: _round(value) for name, value in sorted(found[place(item)].values.items())}
                        for label, found in self.measured.items()
                        if place(item) in found
                    },
                }
                for item in self.plan.items
            ],
            "excluded": [vars(one) for one in self.excluded],
            "notes": list(self.notes),
        }


def place(item: Item) -> tuple[str, int, int]:
    """What pairs the items of two subjects."""
    return item.key, item.replicate, item.length


def summarize(plan: Plan, folder: Path) -> Results:
    """Read all records of a finished run; errors as for ``read_records``."""
    records, hashes = read_records(plan, folder)
    return results_of(plan, records, hashes)


def results_of(plan: Plan, records: Sequence[Sequence[Measured]], hashes: Sequence[str | None]) -> Results:
    """Results of what was measured, by unit."""
    suite = open_suite(plan.suite)
    labels = [subject.label for subject in plan.subjects]
    measured: dict[str, dict[tuple[str, int, int], Measured]] = {label: {} for label in labels}
    for unit, found in zip(plan.units, records, strict=True):
        measured[labels[unit.subject]] |= {place(item): one for item, one in zip(unit.items, found, strict=True)}
    names = _names(suite.metrics, measured)
    metrics = tuple(replace(suite.metric(name), name=name) for name in names)
    means: dict[str, dict[str, Estimate]] = {label: {} for label in labels}
    by_seed: dict[str, dict[str, tuple[float, ...]]] = {label: {} for label in labels}
    differences: dict[str, dict[str, Estimate]] = {label: {} for label in labels[1:]}
    for metric in metrics:
        for label in labels:
            values = _values(measured[label], metric.name)
            if not values:
                continue
            means[label][metric.name] = estimate(_by_prompt(values), is_share=metric.is_share)
            by_seed[label][metric.name] = _by_replicate(values)
        first = _values(measured[labels[0]], metric.name)
        for label in labels[1:]:
            other = _values(measured[label], metric.name)
            both = {key: other[key] - first[key] for key in first if key in other}
            if both:
                differences[label][metric.name] = estimate_difference(_by_prompt(both), is_share=metric.is_share)
    models = {label: own for label, own in zip(labels, hashes, strict=True) if own is not None}
    excluded = tuple(_exclusions(plan, measured))
    empty = [label for label in labels if not means[label]]
    return Results(
        plan,
        metrics,
        measured,
        means,
        by_seed,
        differences,
        excluded,
        models,
        (*nothing_notes(grouped(excluded, labels), empty), *plan.notes, *_few(differences), *_size_notes(measured)),
    )


def _names(metrics: Sequence[Metric], measured: Mapping[str, Mapping[Any, Measured]]) -> list[str]:
    """Names that have values, in the suite's order; points of a curve by their number."""
    order = {metric.name: number for number, metric in enumerate(metrics)}
    names = {name for found in measured.values() for one in found.values() for name in one.values}

    def rank(name: str) -> tuple[int, float]:
        base, _, point = name.partition("@")
        return order[base], float(point) if point else -1.0

    return sorted(names, key=rank)


def _values(found: Mapping[tuple[str, int, int], Measured], name: str) -> dict[tuple[str, int, int], float]:
    return {key: one.values[name] for key, one in found.items() if name in one.values}


def _by_prompt(values: Mapping[tuple[str, int, int], float]) -> list[float]:
    """The mean of each prompt's seeds, in a fixed order."""
    grouped: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (key, _, length), value in sorted(values.items()):
        grouped[key, length].append(value)
    return [sum(group) / len(group) for group in grouped.values()]


def _by_replicate(values: Mapping[tuple[str, int, int], float]) -> tuple[float, ...]:
    grouped: dict[int, list[float]] = defaultdict(list)
    for (_, replicate, _), value in sorted(values.items()):
        grouped[replicate].append(value)
    return tuple(sum(grouped[one]) / len(grouped[one]) for one in sorted(grouped))


def _exclusions(plan: Plan, measured: Mapping[str, Mapping[Any, Measured]]) -> list[Exclusion]:
    found = [
        Exclusion(plan.subjects[number].label, item.key, item.replicate, "", why) for number, item, why in plan.missing
    ]
    for label, ones in measured.items():
        for item in plan.items:
            if place(item) in ones:
                reasons = ones[place(item)].excluded
                found += [
                    Exclusion(label, item.key, item.replicate, metric, why) for metric, why in sorted(reasons.items())
                ]
    return found


def _few(differences: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    counts = [one.prompts for found in differences.values() for one in found.values()]
    if not counts or max(counts) >= FEWEST:
        return []
    got = counted(max(counts), "prompt")
    return [f"Got {got} to compare on; {FEWEST} are needed before anything is called better or worse."]


def _size_notes(measured: Mapping[str, Mapping[Any, Measured]]) -> list[str]:
    """What makes videos of two subjects unequal: sizes, lengths, rates."""
    sizes = {
        label: sorted({(one.frames, one.width, one.height, one.fps) for one in found.values() if one.frames})
        for label, found in measured.items()
    }
    notes = [
        f"The videos of '{label}' differ in length, size or rate: {len(own)} kinds, from {_size(own[0])} to "
        f"{_size(own[-1])}."
        for label, own in sizes.items()
        if len(own) > 1 and len({one[1:] for one in own}) > 1
    ]
    kinds = {own[0] for own in sizes.values() if len(own) == 1}
    if len(kinds) > 1:
        told = ", ".join(f"'{label}' {_size(own[0])}" for label, own in sizes.items() if len(own) == 1)
        notes.append(f"Subjects differ in length, size or rate of their videos, and so may their figures: {told}.")
    return notes


def _size(kind: tuple[int, int, int, float]) -> str:
    frames, width, height, fps = kind
    return f"{frames} frames of {width} x {height} at {fps:g} a second"


def _settings(plan: Plan) -> dict[str, Any]:
    options = plan.options
    teacher = None if options.teacher is None else options.teacher.label
    return {
        "items": len({(item.key, item.length) for item in plan.items}),
        "seeds": 1 + max(item.replicate for item in plan.items),
        "seed": options.seed,
        "num_frames": options.num_frames,
        "teacher": teacher,
        "lengths": sorted({item.length for item in plan.items}),
        "device": plan.device,
        "dtype": plan.dtype,
    }


def _estimate(value: Estimate) -> dict[str, Any]:
    low, high = (None if one is None else _round(one) for one in (value.low, value.high))
    return {"mean": _round(value.mean), "low": low, "high": high, "prompts": value.prompts}


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")

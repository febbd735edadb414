"""The cases of a report: what every subject made of one item, the worst ones of all first, within a budget of bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from arl2.evaluation.suites.suite import Item, Measured, Metric
from arl2.evaluation.suites.summary import Results, place

# Of all filmstrips of a report, as JPEG; in the page they take a third more.
STRIP_BYTES = 12_000_000


@dataclass(frozen=True)
class Case:
    """One item: what was measured of each subject, by label."""

    item: Item
    measured: Mapping[str, Measured]


def cases_of(results: Results, primary: Metric) -> tuple[list[Case], int]:
    """Cases, worst first, as many as the budget holds; and how many are left out.

    The worst has the worst value of ``primary`` (of curves, of any point), over all subjects; then the widest gap
    between subjects decides, then the order of the items.
    """
    cases = []
    for item in results.plan.items:
        found = {label: ones[place(item)] for label, ones in results.measured.items() if place(item) in ones}
        if found:
            cases.append(Case(item, found))
    order = sorted(range(len(cases)), key=lambda index: (*_badness(cases[index], primary), index))
    kept: list[Case] = []
    taken = 0
    for index in order:
        taken += sum(len(one.strip) for one in cases[index].measured.values())
        if taken > STRIP_BYTES and kept:
            break
        kept.append(cases[index])
    return kept, len(cases) - len(kept)


def value_of(measured: Measured, name: str) -> float | None:
    """A value of a metric, or of a curve's points the mean."""
    found = [value for key, value in measured.values.items() if key == name or key.startswith(f"{name}@")]
    return sum(found) / len(found) if found else None


def _badness(case: Case, primary: Metric) -> tuple[float, float]:
    """Sorts the worst first."""
    values = [value_of(one, primary.name) for one in case.measured.values()]
    known = [value for value in values if value is not None]
    if not known:
        return float("-inf"), 0.0  # what could not be judged is to be seen
    sign = 1.0 if primary.better == "high" else -1.0
    return min(sign * value for value in known), -(max(known) - min(known))

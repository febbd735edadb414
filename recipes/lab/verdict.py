"""How results are read: intervals, differences paired by prompt, the rule of docs/lab.md, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from arl2.attention.plan import letters
from arl2.evaluation.suites.bootstrap import estimate_difference, wilson

FRAMES_PER_LATENT = 4  # video frames


def spread_between_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By share, how many times the seeds of a row differ by what chance alone would make them, in variance.

    Two trainings differ by more than the clips they are measured on. Pearson's statistic over its degrees of freedom,
    all trained rows together; at least 1.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for one in results for name in one["shares"]):
        statistic, free = 0.0, 0
        for one in results:
            share = one["shares"].get(name)
            counts = [(hits, of) for hits, of in (share or {}).get("counts", []) if of]
            if one["plan"] == "teacher" or len(counts) < 2 or share is None or not 0 < share["share"] < 1:
                continue
            variance = share["share"] * (1 - share["share"])
            statistic += sum((hits - of * share["share"]) ** 2 / (of * variance) for hits, of in counts)
            free += len(counts) - 1
        found[name] = max(1.0, statistic / free) if free else 1.0
    return found


def with_spread(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results, Wilson's intervals of trained rows as wide as the spread between seeds asks for.

    So many times fewer clips would differ as much by chance alone.
    """
    spread = spread_between_seeds(results)
    found = []
    for one in results:
        shares = {}
        for name, share in one["shares"].items():
            factor = 1.0 if one["plan"] == "teacher" else spread[name]
            low, high = wilson(share["hits"] / factor, share["of"] / factor)
            shares[name] = {**share, "low": low, "high": high}
        found.append({**one, "shares": shares})
    return found


def against(
    row: Mapping[str, Sequence[bool | None]], other: Mapping[str, Sequence[bool | None]]
) -> dict[str, Any] | None:
    """Difference of a row's share of right prompts from another's, prompt by prompt; None without a common prompt.

    Args:
        row, other: by seed, whether each prompt's video is right; a prompt that either cannot be judged on is left
            out. Prompts of different seeds are different prompts.
    """
    pairs = [pair for seed, own in row.items() if seed in other for pair in zip(own, other[seed], strict=True)]
    differences = [float(one) - float(two) for one, two in pairs if one is not None and two is not None]
    if not differences:
        return None
    found = estimate_difference(differences, is_share=True)
    return {"mean": found.mean, "low": found.low, "high": found.high, "prompts": found.prompts}


def with_differences(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results with what trained rows differ by, in ``all``.

    ``against_teacher``: from the teacher with the same window, if that was measured. ``against_best``: from the trained
    row with the best share. ``admitted``: whether that is not significant.
    """
    teachers = {one["window"]: one["right"] for one in results if one["plan"] == "teacher"}
    trained = [one for one in results if one["plan"] != "teacher" and "all" in one["shares"]]
    best = max(trained, key=lambda one: one["shares"]["all"]["share"] or 0.0, default=None)
    found = [dict(one) for one in results]
    for one in found:
        if one["plan"] != "teacher" and best is not None:
            one["against_teacher"] = against(one["right"], teachers.get(one["window"], {}))
            one["against_best"] = from_best = against(one["right"], best["right"])
            one["admitted"] = from_best is not None and (from_best["high"] or 0.0) >= 0
    return found


def chosen_by_rule(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The admitted rows that count as equal to the one that remembers most, the chosen one first (docs/lab.md)."""
    lengths = {int(name.split()[0]) for one in results for name in one["shares"] if name.endswith(" hidden")}
    if not lengths:
        return []
    longest = f"{max(lengths)} hidden"
    # A window that shows what the longest occlusion hides needs no memory.
    is_memory = {one["row"]: FRAMES_PER_LATENT * one["window"] < max(lengths) for one in results}
    admitted = [one for one in results if one.get("admitted") and is_memory[one["row"]]]
    admitted = [one for one in admitted if one["shares"][longest]["share"] is not None]
    if not admitted:
        return []
    best = max((one["shares"][longest] for one in admitted), key=lambda share: share["share"])
    equal = [one for one in admitted if one["shares"][longest]["high"] >= best["low"]]

    def order(one: Mapping[str, Any]) -> tuple[float, ...]:
        youngest = max(letters().index(letter) for letter in one["plan"])  # known kinds, the oldest first
        return one["memory_bytes"], one["parameters"], youngest, -one["shares"][longest]["share"]

    return [one["row"] for one in sorted(equal, key=order)]


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line a row, intervals in brackets."""
    errors = [name for name in ("flow error", "hidden", "rollout") if any(name in one["errors"] for one in results)]
    shares = list(dict.fromkeys(name for one in results for name in one["shares"]))
    is_paired = any(one.get("against_teacher") for one in results)
    paired = ["all, against teacher", "all, against best", "admitted"] if is_paired else []
    header = ["row", "plan", "seeds", *errors, *shares, *paired, "memory, kB", "minutes"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for one in results:
        cells = [one["row"], one["plan"], str(len(one["seeds"]))]
        for name in errors:
            x = one["errors"].get(name)
            cells.append("-" if x is None else f"{x['mean']:.4f} ({x['lowest']:.4f} to {x['highest']:.4f})")
        for name in shares:
            cells.append(_share_cell(one["shares"].get(name)))
        if is_paired:
            cells += [_paired_cell(one.get(name)) for name in ("against_teacher", "against_best")]
            cells.append({None: "-", True: "yes", False: "no"}[one.get("admitted")])
        lines.append("| " + " | ".join([*cells, f"{one['memory_bytes'] / 1e3:.0f}", f"{one['minutes']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def _share_cell(x: Mapping[str, Any] | None) -> str:
    """With the interval, and the share of each seed behind it."""
    if x is None or x["share"] is None:
        return "-"
    each = ", ".join(f"{100 * hits / of:.0f}" for hits, of in x.get("counts", []) if of)
    return f"{x['share']:.0%} ({x['low']:.0%} to {x['high']:.0%}{'; ' + each if each else ''})"


def _paired_cell(x: Mapping[str, Any] | None) -> str:
    if x is None:
        return "-"
    interval = "" if x["low"] is None else f" ({100 * x['low']:+.1f} to {100 * x['high']:+.1f})"
    return f"{100 * x['mean']:+.1f}{interval}"

"""Results as a Markdown table, and figures as people read them."""

from arl2.evaluation.suites.bootstrap import FEWEST, Estimate
from arl2.evaluation.suites.suite import Metric
from arl2.evaluation.suites.summary import Results
from arl2.evaluation.wording import counted


def shown(value: float, metric: Metric) -> str:
    """A value: shares as per cent, others with four digits."""
    return f"{100 * value:.1f} %" if metric.is_share else f"{value:.4g}"


def with_interval(value: Estimate, metric: Metric) -> str:
    """A mean and its interval, as ``60.0 % (53.0 to 66.5)``."""
    if value.low is None or value.high is None:
        return shown(value.mean, metric)
    if metric.is_share:
        return f"{100 * value.mean:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{value.mean:.4g} ({value.low:.3g} to {value.high:.3g})"


def difference_shown(value: Estimate, metric: Metric) -> str:
    """A paired difference with its sign; of shares in points."""
    factor = 100 if metric.is_share else 1
    mean = f"{factor * value.mean:+.3g}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({factor * value.low:+.3g} to {factor * value.high:+.3g})"


def markdown(results: Results) -> str:
    """Means of all subjects with 95 % intervals, differences from the first one below them, and what is left out."""
    labels = results.labels
    lines = [
        f"# arl2 eval --suite {results.plan.suite}",
        "",
        f"{_counted(results)} Brackets are 95 % intervals over prompts.",
        "",
        f"| metric | better | {' | '.join(_cell(label) for label in labels)} |",
        f"|---|---|{'---|' * len(labels)}",
    ]
    for metric in results.metrics:
        cells = [
            with_interval(results.means[label][metric.name], metric) if metric.name in results.means[label] else "-"
            for label in labels
        ]
        lines.append(f"| {metric.name} | {metric.better} | {' | '.join(cells)} |")
    if len(labels) > 1:
        lines += [
            "",
            f"Differences from {_cell(labels[0])} on the same prompts and seeds (shares in points); **bold** where the "
            f"interval leaves 0 out, of {FEWEST} prompts or more:",
            "",
            f"| metric | {' | '.join(_cell(label) for label in labels[1:])} |",
            f"|---|{'---|' * (len(labels) - 1)}",
        ]
        for metric in results.metrics:
            cells = []
            for label in labels[1:]:
                found = results.differences[label].get(metric.name)
                told = "-" if found is None else difference_shown(found, metric)
                cells.append(f"**{told}**" if found is not None and found.is_clear else told)
            lines.append(f"| {metric.name} | {' | '.join(cells)} |")
    if results.excluded:
        lines += [
            "",
            f"Left out: {counted(len(results.excluded), 'value or video', 'values and videos')}; results.json lists "
            "each with its reason.",
            "",
            "| of | left out | videos | such as | reason |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {_cell(one.subject)} | {one.what} | {one.count} | {_cell(one.first)} | {_cell(one.why)} |"
            for one in results.left_out
        ]
    lines += ["", *results.notes] if results.notes else []
    return "\n".join(lines) + "\n"


def _counted(results: Results) -> str:
    settings = results.settings
    seeds = settings["seeds"]
    return f"{counted(settings['items'], 'item')}, {counted(seeds, 'seed')} each."


def _cell(text: str) -> str:
    """Of a table; prompts and names are no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

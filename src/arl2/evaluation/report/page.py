"""Results as one HTML file that needs nothing else: tables, plots, filmstrips side by side, the worst cases first."""

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from arl2.evaluation.report.cases import Case, cases_of, value_of
from arl2.evaluation.report.svg import Bar, Line, colour_of, curves, forest
from arl2.evaluation.report.table import difference_shown, shown, with_interval
from arl2.evaluation.suites.bootstrap import FEWEST
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.suite import Metric
from arl2.evaluation.suites.summary import Results
from arl2.evaluation.wording import counted
from arl2.version import __version__

_MOST_LISTED = 500  # exclusions


def html_page(results: Results) -> str:
    """The whole page. Equal results give equal pages."""
    suite = open_suite(results.plan.suite)
    primary = suite.metric(suite.primary)
    curved = [metric for metric in suite.metrics if metric.across is not None and _has(results, metric.name)]
    plain = [metric for metric in results.metrics if "@" not in metric.name]
    cases, left_out = cases_of(results, primary)
    sections = [
        ("Summary", _summary(results)),
        ("Differences", _differences(results) if len(results.labels) > 1 else ""),
        ("Curves", "".join(_curve(results, metric) for metric in curved)),
        ("Plots", "".join(_plot(results, metric) for metric in plain)),
        ("Left out", _excluded(results)),
        ("Cases", _cases(results, cases, left_out, [*plain, *curved], primary)),
    ]
    head = _head(results, suite.about, [name for name, content in sections if content])
    body = "".join(_section(name, content) for name, content in sections if content)
    title = f"arl2 eval, suite {results.plan.suite}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<style>{_text('page.css')}</style></head><body><main>{head}{body}</main>"
        f"<script>{_text('page.js')}</script></body></html>\n"
    )


def _text(name: str) -> str:
    # A part of this package, not a user's file.
    with files("arl2.evaluation.report").joinpath(name).open(encoding="utf-8") as part:
        return part.read()


def _section(title: str, content: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{title}</h2>{content}</section>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _has(results: Results, name: str) -> bool:
    return any(metric.name.startswith(f"{name}@") for metric in results.metrics)


def _head(results: Results, about: str, sections: Sequence[str]) -> str:
    settings = results.settings
    facts = [
        counted(settings["items"], "item"),
        f"{counted(settings['seeds'], 'noise seed')} each",
        *([f"seed {settings['seed']}"] if results.plan.has_seeds and not results.plan.options.own_seeds else []),
        *([counted(settings["num_frames"], "video frame")] if settings["num_frames"] else []),
        *([f"teacher {settings['teacher']}"] if settings["teacher"] else []),
        f"arl2 {__version__}",
    ]
    legend = "".join(
        f'<li><span class="key" style="background:{colour_of(number)}"></span>{escape(subject.label)} '
        f"<small>{_kind(subject.kind)}{_hash(results, subject.label)}</small></li>"
        for number, subject in enumerate(results.plan.subjects)
    )
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in results.notes)
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    return (
        f"<header><h1>Suite {escape(results.plan.suite)}</h1><p>{escape(about)}. {escape(', '.join(facts))}. "
        "Brackets and bars are 95 % intervals over prompts, the seeds of a prompt taken together.</p>"
        f'<ul class="legend">{legend}</ul>{notes}<nav>{links}</nav></header>'
    )


def _kind(kind: str) -> str:
    return {"model": "model", "videos": "videos", "truth": "true renders"}[kind]


def _hash(results: Results, label: str) -> str:
    found = results.models.get(label)
    return "" if found is None else f" {found[:8]}"


def _summary(results: Results) -> str:
    head = "".join(f"<th>{escape(label)}</th>" for label in results.labels)
    rows = []
    for metric in results.metrics:
        cells = []
        for label in results.labels:
            found = results.means[label].get(metric.name)
            if found is None:
                cells.append("<td>-</td>")
                continue
            seeds = results.by_seed[label][metric.name]
            told = f"by seed: {', '.join(shown(one, metric) for one in seeds)}; {counted(found.prompts, 'prompt')}"
            verdict = results.better(label, metric)
            mark = "" if verdict is None else ' class="good"' if verdict else ' class="bad"'
            cells.append(f'<td{mark} title="{escape(told, quote=True)}">{with_interval(found, metric)}</td>')
        rows.append(f"<tr><th>{_named(metric)}</th><td>{_arrow(metric)}</td>{''.join(cells)}</tr>")
    return (
        "<p>Green and red: better or worse than the first column by more than chance, pair by pair, on "
        f"{FEWEST} prompts or more.</p>"
        f'<div class="wide"><table><thead><tr><th>metric</th><th>better</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _named(metric: Metric) -> str:
    return f'<abbr title="{escape(metric.what, quote=True)}">{escape(metric.name)}</abbr>'


def _arrow(metric: Metric) -> str:
    return {"high": "↑", "low": "↓", "neither": ""}[metric.better]


def _differences(results: Results) -> str:
    head = "".join(f"<th>{escape(label)}</th>" for label in results.labels[1:])
    rows = []
    for metric in results.metrics:
        cells = []
        for label in results.labels[1:]:
            found = results.differences[label].get(metric.name)
            verdict = results.better(label, metric)
            mark = "" if verdict is None else ' class="good"' if verdict else ' class="bad"'
            cells.append(f"<td{mark}>{'-' if found is None else difference_shown(found, metric)}</td>")
        rows.append(f"<tr><th>{_named(metric)}</th><td>{_arrow(metric)}</td>{''.join(cells)}</tr>")
    first = escape(results.labels[0])
    return (
        f"<p>Minus {first}, on the prompts and seeds that both have; shares in points.</p>"
        f'<div class="wide"><table><thead><tr><th>metric</th><th>better</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plot(results: Results, metric: Metric) -> str:
    factor = 100 if metric.is_share else 1
    bars = []
    for number, label in enumerate(results.labels):
        found = results.means[label].get(metric.name)
        if found is not None:
            low, high = (None if one is None else factor * one for one in (found.low, found.high))
            bars.append(Bar(label, factor * found.mean, low, high, colour_of(number)))
    unit = ", %" if metric.is_share else ""
    return f"<figure><figcaption>{_named(metric)}{unit}</figcaption>{forest(bars, title=metric.name)}</figure>"


def _curve(results: Results, metric: Metric) -> str:
    factor = 100 if metric.is_share else 1
    lines = []
    for number, label in enumerate(results.labels):
        points = [
            (
                x,
                factor * one.mean,
                None if one.low is None else factor * one.low,
                None if one.high is None else factor * one.high,
            )
            for x, one in results.curve(label, metric.name)
        ]
        if points:
            lines.append(Line(label, points, colour_of(number)))
    unit = ", %" if metric.is_share else ""
    drawn = curves(lines, title=metric.name, across=str(metric.across))
    return f"<figure><figcaption>{_named(metric)}{unit}</figcaption>{drawn}</figure>"


def _excluded(results: Results) -> str:
    if not results.excluded:
        return "<p>Nothing.</p>"
    groups = "".join(
        f"<tr><td>{escape(one.subject)}</td><td>{escape(one.what)}</td><td>{one.count}</td>"
        f"<td>{escape(one.first)}</td><td>{escape(one.why)}</td></tr>"
        for one in results.left_out
    )
    # Whole videos first: what routine leaves out of single metrics must not push them off the list.
    listed = sorted(results.excluded, key=lambda one: bool(one.metric))[:_MOST_LISTED]
    rows = "".join(
        f"<tr><td>{escape(one.subject)}</td><td>{escape(one.item)}</td><td>{one.replicate}</td>"
        f"<td>{escape(one.metric or 'the whole video')}</td><td>{escape(one.why)}</td></tr>"
        for one in listed
    )
    rest = len(results.excluded) - len(listed)
    more = f"<p>{rest} more {'is' if rest == 1 else 'are'} in results.json.</p>" if rest else ""
    return (
        f"{_wide(('of', 'left out', 'videos', 'such as', 'reason'), groups)}"
        f"<details><summary>One by one: {len(results.excluded)} in no mean</summary>"
        f"{_wide(('of', 'item', 'replicate', 'left out', 'reason'), rows)}{more}</details>"
    )


def _wide(heads: Sequence[str], rows: str) -> str:
    """A table that may be wider than the window."""
    head = "".join(f"<th>{one}</th>" for one in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cases(results: Results, cases: Sequence[Case], left_out: int, metrics: Sequence[Metric], primary: Metric) -> str:
    options = "".join(
        f'<option value="{escape(one.name, quote=True)}" data-sign="{-1 if one.better == "low" else 1}"'
        f"{' selected' if one.name == primary.name else ''}>{escape(one.name)}</option>"
        for one in metrics
    )
    of = "".join(f'<option value="{number}">{escape(label)}</option>' for number, label in enumerate(results.labels))
    better = f"{counted(left_out, 'better case')} {'is' if left_out == 1 else 'are'} left out"
    left = f"<p>{better}, so that this page stays small.</p>" if left_out else ""
    articles = "".join(_case(results, case, metrics) for case in cases)
    return (
        f'<p class="tools"><label>Worst first by <select id="metric">{options}</select></label> '
        f'<label>of <select id="subject"><option value="all">all</option>{of}</select></label> '
        '<label>prompt contains <input id="search" type="search"></label> '
        f'<output id="count">{counted(len(cases), "case")}</output></p>{left}<div id="list">{articles}</div>'
    )


def _case(results: Results, case: Case, metrics: Sequence[Metric]) -> str:
    strips = []
    for number, label in enumerate(results.labels):
        measured = case.measured.get(label)
        if measured is None:
            strips.append(f'<div class="strip"><span>{escape(label)}</span><em>no video</em></div>')
            continue
        data = []
        told = []
        for metric in metrics:
            value = value_of(measured, metric.name)
            if value is not None:
                data.append(f'data-{_attribute(metric.name)}="{value:.6g}"')
                told.append(f"{metric.name} {value:.3g}")
        why = measured.excluded.get("")
        picture = (
            f'<img loading="lazy" decoding="async" alt="frames of {escape(label, quote=True)}" '
            f'src="data:image/jpeg;base64,{base64.b64encode(measured.strip).decode()}">'
            if measured.strip
            else ""
        )
        said = f"<em>{escape(why)}</em>" if why else f"<small>{escape(', '.join(told[:8]))}</small>"
        strips.append(
            f'<div class="strip" data-subject="{number}" {" ".join(data)}>'
            f'<span style="border-color:{colour_of(number)}">{escape(label)}</span>{picture}{said}</div>'
        )
    item = case.item
    length = f", {item.length} occluded" if item.length else ""
    which = f"seed {item.seed}" if results.plan.has_seeds else f"sample {item.replicate}"
    return (
        f"<article><h3>{escape(item.prompt or item.key)} <small>{which}{length}</small></h3>{''.join(strips)}</article>"
    )


def _attribute(name: str) -> str:
    return name.replace("_", "-").lower()

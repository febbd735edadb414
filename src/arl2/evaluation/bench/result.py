"""What a part of the benchmark found: kept as JSON, shown as a table, compared with another one."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.evaluation.bench.machine import is_same_machine, machine_words
from arl2.evaluation.bench.timing import Timing
from arl2.evaluation.check import Check as Check
from arl2.files.plain import read_json_value

FORMAT, VERSION = "arl2 bench", 1
Number = float | int | None
Value = Timing | Number | str


@dataclass(frozen=True)
class Row:
    """What was measured of one thing.

    Attributes:
        name: of the thing.
        values: by name. The last word of a name is its unit: ``seconds``, ``bytes``, ``flops``, ``share``, ``times``.
    """

    name: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Finding:
    """A figure that follows from several rows.

    Attributes:
        name: what it says.
        value: the figure.
        unit: ``times`` or ``share``.
        low, high: with the fastest and the slowest runs, where it is of times.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass
class Result:
    """Of one part.

    Attributes:
        part: its name.
        settings: what was asked for.
        machine: hardware, versions, commit, date.
        ceilings: the machine's own, by dtype.
        checks: of the correctness gate, and of memory.
        rows, findings: what was measured, and what follows; nothing if a check failed.
        notes: how figures came about, in sentences.
        complete: whether all was measured; not after Ctrl-C.
    """

    part: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    ceilings: Mapping[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def passed(self) -> bool:
        """Whether all checks passed, and there were some."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "part": self.part,
            "complete": self.complete,
            "passed": self.passed,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "ceilings": dict(self.ceilings),
            "checks": [asdict(check) | {"passed": check.passed} for check in self.checks],
            "rows": [
                {"name": row.name, **{key: _plain(value) for key, value in row.values.items()}} for row in self.rows
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


def read_result(path: Path) -> dict[str, Any]:
    """A result that was written before, as plain values.

    Raises:
        ConfigError: no result of this benchmark, or of a newer version.
    """
    content = read_json_value(path, error=ConfigError)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"'{path}' is no result of arl2 bench; give a file that 'arl2 bench PART -o FILE' wrote.")
    if content.get("version") != VERSION:
        raise ConfigError(
            f"'{path}' is of version {content.get('version')!r:.20}, this arl2 reads {VERSION}; measure again."
        )
    kinds = {"part": str, "settings": dict, "machine": dict, "rows": list, "passed": bool}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    rows = content.get("rows")
    if wrong or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows or ()):
        raise ConfigError(
            f"'{path}' is damaged: {', '.join(wrong) or 'a row'} is not as it was written; measure again."
        )
    if not content["passed"]:
        raise ConfigError(f"'{path}' failed its correctness checks, so its times say nothing; measure again.")
    return content


@dataclass(frozen=True)
class Compared:
    """One measurement in two results: the second over the first, and the range that their runs leave open."""

    row: str
    value: str
    first: float
    second: float
    ratio: float
    low: float
    high: float


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, across_machines: bool = False) -> list[Compared]:
    """All measurements that both results have.

    Args:
        first, second: as :func:`read_result` gives them.
        across_machines: accept results of different machines.

    Raises:
        ConfigError: results of different parts or machines, or without a common measurement.
    """
    if first["part"] != second["part"]:
        raise ConfigError(
            f"The first result is of '{first['part']}' and the second of '{second['part']}'; compare two of one part."
        )
    if not across_machines and not is_same_machine(first["machine"], second["machine"]):
        raise ConfigError(
            f"The results are of different machines ({machine_words(first['machine'])}; "
            f"{machine_words(second['machine'])}); add --across-machines to compare them anyway."
        )
    found = list(_common(first, second))
    if not found:
        raise ConfigError("The two results have no measurement in common; measure both with the same settings.")
    return found


def changed_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two results, and the facts that explain a difference: commit, versions, threads."""
    known = ("arl2", "commit", "torch", "triton", "fla-core", "threads", "time")
    ours, theirs = ({**one["settings"], **{n: one["machine"].get(n) for n in known}} for one in (first, second))
    return {name: (ours.get(name), theirs.get(name)) for name in ours | theirs if ours.get(name) != theirs.get(name)}


def _common(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Compared]:
    theirs = {row["name"]: row for row in second["rows"]}
    for row in first["rows"]:
        for name, value in row.items():
            a, b = _range(value), _range(theirs.get(row["name"], {}).get(name))
            if a and b and a[0] > 0 and b[0] > 0:
                yield Compared(row["name"], name, a[1], b[1], b[1] / a[1], b[0] / a[2], b[2] / a[0])


def _range(value: Any) -> tuple[float, float, float] | None:
    """Smallest, median and largest of a measurement; None of what is no number."""
    if isinstance(value, dict):
        three = [value.get(name) for name in ("smallest", "median", "largest")]
        return tuple(three) if all(isinstance(x, int | float) for x in three) else None  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value, value, value


def _plain(value: Value) -> Any:
    return value.to_mapping() if isinstance(value, Timing) else value

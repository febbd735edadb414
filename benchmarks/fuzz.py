"""Files that are damaged in every way: is each refused in one sentence, or read, quickly and in little memory?

    python benchmarks/fuzz.py --cases 10000 --processes 2
    python benchmarks/fuzz.py --kinds tokenizer --cases 200
    python benchmarks/fuzz.py --case 1234

A case is a kind of file (``fuzz_kinds``), a change (``fuzz_changes``) and a seed. Forty at a time run in a process that
is forked from one that has imported everything. A case ends as ``loaded`` (the same or another value was read), as
``refused`` (an error of arl2 that names the file), or as a fault: another exception, a refusal that names no file, more
than 10 seconds, more than 2 GB, or a value that differs where the format's checksums could have told. Prints a table
of Markdown by kind, then each fault with the number that ``--case`` repeats; the exit code is 1 if there are any.
"""

import argparse
import dataclasses
import gc
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from arl2.errors import Arl2Error, NonFiniteError
from fuzz_changes import change_file
from fuzz_kinds import KINDS, Kind, ready_pipeline, write_originals

LONGEST, LARGEST = 10.0, 2_000_000_000  # seconds and bytes of a case
FAULTS = ("traceback", "unnamed", "hang", "memory", "silent")
_LONGEST_OF_ALL = 120.0  # seconds, of a case that gets no processor
_AT_ONCE = 40  # cases that share a process
_SENTENCE, _SAID = 1500, 100_000  # characters of a refusal, and of anything


@dataclasses.dataclass
class Outcome:
    """How a case ended: ``loaded``, ``other value``, ``refused``, or one of ``FAULTS``; of which kind, and with what.

    ``value`` is a hash of what was read, ``said`` the refusal or traceback.
    """

    case: int
    kind: str
    end: str
    change: str = ""
    said: str = ""
    value: str = ""
    seconds: float = 0.0
    peak: int = 0


def digest_of(value: Any) -> str:
    """A hash of anything that a kind's ``load`` returns."""
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense().contiguous()
        yield f"{dense.dtype}{list(dense.shape)}".encode()
        yield dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value):
        yield from _pieces(vars(value))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode("utf-8", "replace")
            yield from _pieces(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"{len(value)}".encode()
        for one in value:
            yield from _pieces(one)
    else:
        yield repr(value).encode("utf-8", "replace")


def prepare(originals: Path, work: Path, kind: Kind, case: int, seed: int) -> tuple[Path, str]:
    """A copy of the kind's folder with one file changed, if ``case`` is not negative; the folder, and the change."""
    folder = work / f"case{case}"
    shutil.copytree(originals / kind.folder, folder)
    if case < 0:
        return folder, ""
    draw = random.Random(f"{seed}/{case}")
    file = draw.choice(sorted(path for path in folder.glob(kind.files) if path.is_file()))
    return folder, f"{file.name}: {change_file(file, kind.changes, draw)}"


def run_case(folder: Path, kind: Kind) -> tuple[str, str, str]:
    """Load what was changed: how it ended, a hash of the value, and what was said."""
    try:
        return "loaded", digest_of(kind.load(folder)), ""
    except NonFiniteError as error:  # found when computing, where no file is known
        return "refused", "", str(error)
    except Arl2Error as error:
        said = str(error)
        named = any(path.name in said for path in [folder, *folder.rglob("*")])
        return "refused" if named and "\n" not in said and len(said) < _SENTENCE else "unnamed", "", said
    except BaseException:  # a panic of a library in Rust is no Exception
        return "traceback", "", traceback.format_exc()


def _in_child(originals: Path, work: Path, cases: Sequence[tuple[int, Kind]], seed: int, answer: int) -> None:
    """Run cases one after the other and answer with a line at the start and at the end of each; ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    for case, kind in cases:
        folder, change = prepare(originals, work, kind, case, seed)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
        began = time.monotonic()
        os.write(answer, (json.dumps({"change": change}) + "\n").encode())
        known = set(sys.modules)
        end, value, said = run_case(folder, kind)
        seconds = time.monotonic() - began
        if case < 0 and end == "loaded":
            said = " ".join(name for name in sys.modules if name not in known)
        said = said[:_SAID].encode("utf-8", "replace").decode()
        found = {"end": end, "value": value, "said": said, "seconds": seconds, "peak": _peak_bytes()}
        os.write(answer, (json.dumps(found) + "\n").encode())
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _state_and_seconds(process: int) -> tuple[str, float]:
    """Of a process: ``R`` where it runs or would run, and the seconds of a processor that it has used so far."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return "", 0.0


class Batch:
    """Cases in a process of their own, watched: one that takes too long or too much is stopped, and the rest returned.

    What files map into memory is not counted, as the system can take it back.
    """

    def __init__(
        self, originals: Path, work: Path, cases: Sequence[tuple[int, Kind]], seed: int, whole: Mapping[str, str]
    ) -> None:
        self.work, self.left, self.whole = work, list(cases), whole
        self.change: str | None = None
        self.began, self.used = time.monotonic(), 0.0
        self.said, writing = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self.said)
                _in_child(originals, work, cases, seed, writing)
            finally:
                os._exit(3)
        os.close(writing)
        os.set_blocking(self.said, False)
        self.text = b""
        self.over = False

    def outcomes(self) -> Iterator[Outcome]:
        """Of the cases that ended since the last call; afterwards ``over`` says whether the process has ended."""
        gone, _ = os.waitpid(self.process, os.WNOHANG)
        with suppress(BlockingIOError):
            while piece := os.read(self.said, 1 << 16):
                self.text += piece
        *lines, self.text = self.text.split(b"\n")
        for line in lines:
            found = json.loads(line)
            if "change" in found:
                self.change, self.began = found["change"], time.monotonic()
                _, self.used = _state_and_seconds(self.process)
            else:
                yield self._ended(Outcome(change=self.change or "", **self._next(), **found))
        if gone:
            self.over = True
            if self.left:
                yield self._ended(Outcome(**self._next(), end="traceback", said="the process died", peak=0))
        elif stopped := self._too_much():
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.over = True
            seconds = time.monotonic() - self.began
            yield self._ended(Outcome(**self._next(), end=stopped, seconds=seconds, peak=self.anonymous))
        if self.over:
            os.close(self.said)

    def _next(self) -> dict[str, Any]:
        case, kind = self.left.pop(0)
        self.kind = kind
        return {"case": case, "kind": kind.name}

    def _too_much(self) -> str:
        self.anonymous = 0
        with suppress(OSError, IndexError):
            _, resident, shared, *_ = Path(f"/proc/{self.process}/statm").read_text().split()
            self.anonymous = (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        state, used = _state_and_seconds(self.process)
        wall, used = time.monotonic() - self.began, used - self.used
        # On a busy machine a case may take long because others run: then neither has it worked long, nor does it wait.
        waits_or_works = used > LONGEST / 2 or state != "R"
        if self.left and self.left[0][0] >= 0 and (wall > _LONGEST_OF_ALL or (wall > LONGEST and waits_or_works)):
            return "hang"
        return "memory" if self.anonymous > LARGEST else ""

    def _ended(self, outcome: Outcome) -> Outcome:
        outcome.change, self.change = outcome.change or self.change or "", None
        shutil.rmtree(self.work / f"case{outcome.case}", ignore_errors=True)
        if outcome.end == "loaded" and outcome.value != self.whole.get(outcome.kind, outcome.value):
            outcome.end = "silent" if self.kind.detects else "other value"
        return outcome


def all_outcomes(
    originals: Path,
    work: Path,
    cases: Sequence[tuple[int, Kind]],
    *,
    seed: int,
    processes: int,
    whole: Mapping[str, str],
    at_once: int = 1,
) -> Iterator[Outcome]:
    """Of every case, in the order in which they end; ``at_once`` of them share a process."""
    waiting, running = list(cases), list[Batch]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(Batch(originals, work, waiting[:at_once], seed, whole))
            del waiting[:at_once]
        for batch in list(running):
            yield from batch.outcomes()
            if batch.over:
                running.remove(batch)
                waiting = [*batch.left, *waiting]
        time.sleep(0.005)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row of Markdown for each kind."""
    names = ["cases", "refused", "the same", "other value", "tracebacks", "hangs", "silent", "slowest, s", "peak, MB"]
    lines = [f"| kind | {' | '.join(names)} |", f"|---{'|---:' * len(names)}|"]
    kinds = [*dict.fromkeys(kind.name for kind in KINDS), "all"]
    for name in kinds:
        own = [one for one in outcomes if name in ("all", one.kind)]
        if own:
            ends = Counter(one.end for one in own)
            numbers = [len(own), ends["refused"], ends["loaded"], ends["other value"]]
            numbers += [ends["traceback"] + ends["unnamed"], ends["hang"] + ends["memory"], ends["silent"]]
            slowest, peak = max(one.seconds for one in own), max(one.peak for one in own) / 1e6
            lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {slowest:.1f} | {peak:.0f} |")
    return "\n".join(lines)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all changes (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="cases at once (default: 1)")
    parser.add_argument("--kinds", default="", help="only kinds whose name holds this")
    parser.add_argument("--case", type=int, help="repeat one case in this process, and show what it said")
    parser.add_argument("--json", type=Path, help="file to which each outcome is added as a line")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run; 1 if there are faults."""
    given = _options(words)
    _quiet()
    kinds = [kind for kind in KINDS if given.kinds in kind.name]
    with tempfile.TemporaryDirectory() as place:
        originals, work = Path(place) / "originals", Path(place) / "work"
        originals.mkdir()
        work.mkdir()
        # In a process of its own: the libraries that write files start threads, which a fork would lose.
        making = multiprocessing.get_context("fork").Process(target=write_originals, args=(originals,))
        making.start()
        making.join()
        if given.case is not None:
            kind = KINDS[given.case % len(KINDS)]
            folder, change = prepare(originals, work, kind, given.case, given.seed)
            print(f"{kind.name}, {change}: {run_case(folder, kind)}")
            return 0
        ready_pipeline(), ready_pipeline(1)
        began = time.monotonic()
        baseline = [(-1 - i, kind) for i, kind in enumerate(kinds)]
        whole: dict[str, str] = {}
        for one in all_outcomes(originals, work, baseline, seed=0, processes=given.processes, whole={}):
            if one.end != "loaded":
                raise SystemExit(f"The whole file of the kind '{one.kind}' is not read ({one.end}): {one.said}")
            whole[one.kind] = one.value
            # What a kind loads late is loaded here, once for all its cases.
            for name in one.said.split():
                with suppress(Exception):
                    importlib.import_module(name)
        # The number of a case says its kind, whatever kinds are chosen.
        cases = [(i, KINDS[i % len(KINDS)]) for i in range(given.cases * len(KINDS) // max(len(kinds), 1))]
        cases = [(i, kind) for i, kind in cases if kind in kinds][: given.cases]
        outcomes = []
        gc.freeze()  # what is there stays shared with the processes of the cases
        options = {"seed": given.seed, "processes": given.processes, "whole": whole, "at_once": _AT_ONCE}
        for one in all_outcomes(originals, work, cases, **options):
            outcomes.append(one)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(one)) + "\n")
            if one.end in FAULTS:
                print(f"{one.end}, case {one.case}, {one.kind}, {one.change}\n{one.said}", file=sys.stderr, flush=True)
    faults = Counter(one.end for one in outcomes if one.end in FAULTS)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(table(outcomes))
    print(
        json.dumps(
            {
                "cases": len(outcomes),
                "seed": given.seed,
                **{name: faults[name] for name in FAULTS},
                "slowest_seconds": round(max(one.seconds for one in outcomes), 2),
                "peak_bytes": max(one.peak for one in outcomes),
                "minutes": round((time.monotonic() - began) / 60, 1),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "commit": commit.stdout.strip(),
            }
        )
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""The house rules that a parser can check: imports go one way, no literal sizes, a free import, small files.

Each test walks all source files and reports every offence at once.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import arl2

SOURCE = Path(arl2.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A room imports itself and rooms of earlier lines only; rooms of one line do not import each other.
ROOMS = [
    {"version"},
    {"errors"},
    {"bases"},
    {"geometry", "files", "float64", "interrupt", "extensions"},
    {"kernels", "diffusion"},
    {"attention", "text", "video"},
    {"model"},
    {"checkpoints"},
    {"rollout"},
    {"streams"},
    {"pipeline"},
    {"training", "serving"},
    {"evaluation"},
    {"shapes"},
    {"cli"},
]
RANK = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
# The same inside the rooms that have rooms of their own.
INNER = {
    "training": [{"engine"}, {"clips"}, {"conversion"}],
    "shapes": [{"codec"}, {"world"}, {"prompts"}, {"evaluator"}, {"training", "evaluation"}],
}


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(module_of(path) for path in FILES)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """All imports of the package's own modules, those inside functions included."""
    names = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.module, f"{name_of(path)}: imports are absolute"
            assert not node.level, f"{name_of(path)}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in MODULES else node.module for name in inner]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(name for name in names if name.startswith("arl2."))


def test_imports_go_one_way():
    offences = []
    for path in FILES:
        room = room_of(path)
        if room == "__init__":
            continue  # the package's own face names public things of all rooms, loaded when used
        assert room in RANK, f"{room} is no known room"
        for name in imported_modules(path):
            other = name.split(".")[1]
            if other != room and RANK[other] >= RANK[room]:
                offences.append(f"{name_of(path)} imports {name}")
    assert offences == []


@pytest.mark.parametrize("room", INNER)
def test_imports_go_one_way_inside_a_room(room):
    rank = {inner: i for i, inners in enumerate(INNER[room]) for inner in inners}
    offences = []
    for path in (SOURCE / room).rglob("*.py"):
        own = path.relative_to(SOURCE / room).parts[0].removesuffix(".py")
        for name in imported_modules(path):
            _, other_room, *rest = name.split(".")
            if other_room == room and rest and own in rank and rest[0] != own and rank[rest[0]] >= rank[own]:
                offences.append(f"{name_of(path)} imports {name}")
    assert offences == []


def test_no_files_import_each_other_in_a_circle():
    graph = {module_of(path): set(imported_modules(path)) for path in FILES if path != SOURCE / "__init__.py"}
    done: set[str] = set()

    def circle(module: str, above: tuple[str, ...]) -> tuple[str, ...]:
        if module in above:
            return (*above[above.index(module) :], module)
        if module in done or module not in graph:
            return ()
        found = (circle(other, (*above, module)) for other in sorted(graph[module]))
        first = next(filter(None, found), ())
        done.add(module)
        return first

    assert [found for module in sorted(graph) if (found := circle(module, ()))] == []


def test_only_the_list_of_built_in_extensions_names_the_shapes_world():
    """It registers itself: nothing below imports it, or knows its models, classes and settings by name."""
    offences = []
    for path in FILES:
        if RANK.get(room_of(path), len(ROOMS)) < RANK["shapes"] and room_of(path) != "extensions":
            offences += [f"{name_of(path)}: {text}" for text in texts_in(path) if re.match(r"(arl2\.)?shapes\b", text)]
    assert offences == []


def texts_in(path: Path) -> Iterator[str]:
    """String constants and imported modules, without docstrings."""
    tree = tree_of(path)
    bare = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in bare:
            yield node.value
    yield from imported_modules(path)


def test_no_literal_that_geometry_can_derive():
    offences = []
    for path in FILES:
        for found in re.findall(r"\b(1560|4680|32760|65520)\b", path.read_text().replace("_", "")):
            offences.append(f"{name_of(path)}: {found}")
    assert offences == []


def test_files_stay_small_and_say_what_they_are_for():
    offences = []
    for path in FILES:
        lines = len(path.read_text().splitlines())
        if lines > (600 if room_of(path) == "kernels" else 420):
            offences.append(f"{name_of(path)} has {lines} lines")
        if ast.get_docstring(tree_of(path)) is None:
            offences.append(f"{name_of(path)} has no docstring")
    assert offences == []


def test_forbidden_things():
    offences = []
    for path in FILES:
        offences += [f"{name_of(path)}: {offence}" for offence in forbidden_in(path)]
    assert offences == []


def forbidden_in(path: Path) -> Iterator[str]:
    text = path.read_text()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"hasattr", "pickle.load", "pickle.loads", "eval", "exec"}:
                yield name
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            if name == "torch.load" and not safe:
                yield "torch.load without weights_only=True"
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield "a bare except"
            if [type(n) for n in node.body] == [ast.Pass]:
                yield "an exception that is swallowed"
    if re.search(r"\b(TODO|FIXME|XXX)\b", text):
        yield "a mark of unfinished work"
    if "from __future__ import annotations" in text:
        yield "annotations as strings would switch shape checks off"


# What turns a file into data: for files that a user hands over, only ``files/`` calls these, with its limits.
READERS = re.compile(
    r"(json|torch|tomllib|pickle|np|numpy)\.loads?|yaml\.(\w+_)?load|(\w+\.)?(safe_open|load_file|ZipFile)"
    r"|.*\.(read_text|read_bytes|from_file|load_from_disk)|(Image|av)\.open"
)
# Elsewhere: what is no user's file, or stands under a guard of ``files/regular.py`` or one like it.
ALLOWED = {
    "kernels/timings.py": {"read_text"},  # /proc/cpuinfo
    "cli/threads.py": {"read_text"},  # limits of a control group
    "pipeline/free_memory.py": {"read_text"},  # limits of a control group
    "model/cost.py": {"json.loads"},  # the key of a cache, which it wrote itself
    "model/transformer.py": {"json.loads"},  # its own config
    "training/clips/writing.py": {"json.loads"},  # an index that was read before
    "training/clips/dataset.py": {"from_file"},  # Arrow, once its checksum was found right
    "video/images.py": {"Image.open"},
    "video/notebook.py": {"read_bytes"},  # a file that it has just written
    "video/decoding.py": {"av.open"},
    "video/encoded.py": {"av.open"},  # to write
    "serving/outputs/hls.py": {"av.open"},  # to write
    "serving/web/messages.py": {"json.loads"},  # a message of a viewer, as long as its socket lets it be
    "serving/web/page_files.py": {"entry.read_bytes"},  # of the package
}


def test_users_files_become_data_in_one_room():
    offences = []
    for path in FILES:
        allowed = ALLOWED.get(name_of(path), set())
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or room_of(path) == "files":
                continue
            name = ast.unparse(node.func)
            own = node.args and ast.unparse(node.args[0]).startswith("json.dumps(")
            if READERS.fullmatch(name) and not own and not {name, name.rpartition(".")[2]} & allowed:
                offences.append(f"{name_of(path)}: {name}")
    assert offences == []


def test_importing_the_package_is_free():
    code = (
        "import sys, arl2; dir(arl2); assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there_and_others_are_refused():
    for name in dir(arl2):
        assert getattr(arl2, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; public names are"):
        _ = arl2.nothing


FORKING = """
import importlib, os, sys
import diffusers.models, torch
assert "arl2" not in sys.modules
for name in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(name)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.mark.skipif(os.name != "posix", reason="forks are POSIX's")
def test_every_module_can_be_imported_first():
    """No hidden order: each in an interpreter that has imported none of ours, though what most of them need."""
    modules = ["arl2.attention.hybrid", "arl2.model.transformer", "arl2.rollout.generator", "arl2.evaluation.selfcheck"]
    subprocess.run([sys.executable, "-c", FORKING, *modules], check=True)

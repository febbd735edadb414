"""The house rules that a parser can check: direction of imports, no literal sizes, free import, small files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arl2

SOURCE = Path(arl2.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A room imports itself and rooms of earlier lines only; rooms of one line do not import each other.
ROOMS = [
    {"version"},
    {"errors"},
    {"geometry"},
    {"files"},
    {"kernels"},
    {"diffusion"},
    {"attention"},
    {"model"},
    {"text"},
    {"video"},
    {"checkpoints"},
    {"rollout"},
    {"shapes"},
    {"training", "evaluation", "serving"},
    {"cli"},
]
RANK = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: imports are absolute"
    return [name for name in names if name.split(".")[0] == "arl2" and "." in name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return  # the package's own face names public things of all rooms, loaded when used
    assert room in RANK, f"{room} is no known room"
    for name in imported_modules(path):
        other = name.split(".")[1]
        assert other == room or RANK[other] < RANK[room], f"{path.relative_to(SOURCE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_literal_that_geometry_can_derive(path):
    text = path.read_text().replace("_", "")
    assert re.findall(r"\b(1560|4680|32760|65520)\b", text) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path):
    limit = 600 if room_of(path) == "kernels" else 420
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_things_have_docstrings(path):
    def documented(node: ast.AST, inside: str) -> list[str]:
        missing = []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                is_override = isinstance(node, ast.ClassDef) and node.bases
                if ast.get_docstring(child) is None and not (is_override and isinstance(child, ast.FunctionDef)):
                    missing.append(f"{inside}{child.name}")
                if isinstance(child, ast.ClassDef):
                    missing += documented(child, f"{inside}{child.name}.")
        return missing

    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file says what it is for"
    implements_protocol = {"draw"}  # documented where the protocol is
    assert [name for name in documented(tree, "") if name.split(".")[-1] not in implements_protocol] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_forbidden_things(path):
    text = path.read_text()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"hasattr", "pickle.load", "pickle.loads", "eval", "exec"}, f"{name} in {path.name}"
            if name == "torch.load":
                safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
                assert safe, "torch.load without weights_only=True"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
            assert [type(n) for n in node.body] != [ast.Pass], "an exception that is swallowed"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert "from __future__ import annotations" not in text  # it would switch shape checks off


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


def test_every_module_can_be_imported_first():
    """No hidden order: each room in a fresh interpreter."""
    modules = ["arl2.attention.hybrid", "arl2.model.transformer", "arl2.rollout.generator", "arl2.evaluation.selfcheck"]
    for module in modules:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

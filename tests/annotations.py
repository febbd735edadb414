"""The package's annotations, checked while tests run: types by beartype, shapes by jaxtyping.

Every function and method of the package is checked, and what dataclasses are made from; functions inside functions are
not, as every call makes them again. jaxtyping has an import hook for this. It checks arguments twice a call and
keeps track of shapes in functions that have none, which made tiny models several times slower.
"""

import ast
import dataclasses
import functools
import inspect
import marshal
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path
from threading import Lock
from types import CodeType, ModuleType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable

_NAME = "__annotations_checked__"  # of the decorator, in the package's modules
_CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeError)  # an int is a float, as for static checkers
_MAKING = Lock()  # changes a function's annotations for a moment
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def checked(made: Any) -> Any:
    """A function that refuses arguments and results that its annotations do not allow; a dataclass made by such a one.

    What is refused is a ``TypeError``. Of a generator function the arguments are checked, when it is called. Nothing is
    refused while ``jaxtyping.config.jaxtyping_disable`` is set.
    """
    if getattr(made, "__no_type_check__", False):
        return made
    if inspect.isclass(made):
        if dataclasses.is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = checked(made.__init__)
        return made
    if hasattr(made, "__wrapped__") or not made.__annotations__:
        return made
    strict: Any = None

    @functools.wraps(made)
    def either(*args: Any, **kwargs: Any) -> Any:
        nonlocal strict
        if jaxtyping.config.jaxtyping_disable:
            return made(*args, **kwargs)
        if strict is None:  # most functions are not called by a test process, and making it is not free
            with _MAKING:
                strict = _strict(made)
        return strict(*args, **kwargs)

    return either


def _strict(made: Any) -> Any:
    # Written as text, they name classes that only static checkers import.
    hints = {name: Any if isinstance(hint, str) else hint for name, hint in made.__annotations__.items()}
    strict = _generating(made, hints) if inspect.isgeneratorfunction(made) else _typed(made, hints)
    # Within a call, an axis name means one size. Sizes that are computed from arguments take the slower way.
    shapes = [shape for hint in hints.values() for shape in _shapes(hint)]
    if any("{" in shape for shape in shapes):
        strict = jaxtyping.jaxtyped(strict, typechecker=None)
    if not shapes:
        return strict
    scope = jaxtyping.jaxtyped("context")

    def in_scope(*args: Any, **kwargs: Any) -> Any:
        with scope:
            return strict(*args, **kwargs)

    return in_scope


def _typed(made: Any, hints: dict[str, Any]) -> Any:
    original, made.__annotations__ = made.__annotations__, hints
    strict = beartype(conf=_CONF)(made)
    made.__annotations__ = original
    return strict


def _generating(made: Any, hints: dict[str, Any]) -> Any:
    """Its body runs within the calls of others, where axis names may mean other sizes: so nothing is checked there."""
    signature = inspect.signature(made)

    def strict(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints and signature.parameters[name].kind not in _VARIADIC:
                die_if_unbearable(value, hints[name], conf=_CONF)
        return made(*args, **kwargs)

    return strict


def _shapes(hint: Any) -> Iterator[str]:
    """Axes of all arrays in an annotation."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        yield hint.dim_str
    for part in get_args(hint):
        yield from _shapes(part)


class _Decorating(ast.NodeTransformer):
    """Put the decorator nearest to each function, and first of all on each class."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not any(ast.unparse(one).endswith("no_type_check") for one in node.decorator_list):
            node.decorator_list.append(self._decorator(node))
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node  # there are none

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, self._decorator(node))
        return node

    @staticmethod
    def _decorator(node: ast.stmt) -> ast.expr:
        return ast.copy_location(ast.Name(_NAME, ast.Load()), node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """With decorators; kept beside the compiled file that has none, until the source or this file changes."""
        path = self.get_filename(fullname)
        kept = Path(cache_from_source(path, optimization="annotated"))
        stamps = [one.stat() for one in (Path(path), Path(__file__))]
        stamp = " ".join(f"{one.st_mtime_ns} {one.st_size}" for one in stamps).encode() + b"\n"
        with suppress(OSError, EOFError, ValueError, TypeError):
            head, _, code = kept.read_bytes().partition(b"\n")
            if head + b"\n" == stamp:
                return marshal.loads(code)
        tree = _Decorating().visit(ast.parse(self.get_data(path), path))
        made = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        with suppress(OSError):
            kept.parent.mkdir(exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_bytes(stamp + marshal.dumps(made))
            part.replace(kept)
        return made

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] != self.package:
            return None
        spec: ModuleSpec | None = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_annotations(package: str) -> None:
    """Of every module of the package, from its import on.

    Raises:
        RuntimeError: the package was imported before.
    """
    if package in sys.modules:
        raise RuntimeError(f"{package} is imported already; its annotations would not be checked")
    sys.meta_path.insert(0, _Finder(package))

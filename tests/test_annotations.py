"""The checks that all tests run under: annotations of the package are refused where they are not kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from annotations import check_annotations, checked
from arl2.geometry import split_blocks
from arl2.kernels.norm import l2_norm


@checked
def product(x: Float[Tensor, "a b"], y: Float[Tensor, "b c"], scale: float = 1) -> Float[Tensor, "a c"]:
    return scale * (x @ y if scale else y)


@checked
def ones(count: int) -> Float[Tensor, "{count} 2"]:
    return torch.ones(max(count, 1), 2)


@checked
def all_of(parts: list[Float[Tensor, "a"]], whole: Float[Tensor, "a"] | None = None) -> int:
    return len(parts)


@checked
def rows(x: Float[Tensor, "a b"], y: Float[Tensor, "a"], *more: int) -> Iterator[float]:
    for row in x:
        yield float(all_of([row, y[:1].expand(len(row))], row))


@checked
@dataclass
class Sized:
    width: int

    @checked
    def of(self, other: "Unknown") -> "Unknown":
        return other


def test_what_fits_passes() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4), scale=2).shape == (2, 4)
    assert ones(3).shape == (3, 2)
    assert all_of([torch.ones(2)], torch.ones(2)) == all_of([torch.ones(2)]) == 1
    assert list(rows(torch.ones(2, 3), torch.ones(2), 1, 2)) == [2.0, 2.0]
    assert Sized(3).of("anything") == "anything"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: product(torch.ones(2, 3), torch.ones(4, 4)),
        lambda: product(torch.ones(2, 3), torch.ones(3)),
        lambda: product(torch.ones(2, 3).long(), torch.ones(3, 4)),
        lambda: product(torch.ones(2, 3), torch.ones(3, 4), scale="2"),
        lambda: product(torch.ones(2, 3), torch.ones(3, 4), scale=0),  # returns 3 rows instead of 2
        lambda: ones(0),
        lambda: all_of([torch.ones(2)], torch.ones(3)),
        lambda: rows(torch.ones(2, 3), torch.ones(3)),
        lambda: Sized("3"),
        lambda: split_blocks(6, "2"),
        lambda: l2_norm([1.0]),
    ],
)
def test_what_does_not_fit_is_refused(wrong) -> None:
    with pytest.raises(TypeError, match="violates type hint"):
        wrong()


def test_nothing_is_refused_while_checks_are_off(monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert Sized("3").width == "3"
    assert ones(0).shape == (1, 2)


def test_axes_of_one_call_are_not_those_of_the_next() -> None:
    assert [product(torch.ones(2, n), torch.ones(n, 4)).shape for n in (3, 5)] == [(2, 4)] * 2


def test_a_package_that_is_imported_already_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="arl2 is imported already"):
        check_annotations("arl2")

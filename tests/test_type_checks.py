"""The run-time type checks of the suite, made faster than jaxtyping's by tests/conftest.py, miss nothing of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeException
from jaxtyping import Float, TypeCheckError
from torch import Tensor

# Called as the option --jaxtyping-packages does.
checked: Callable[[Any], Any] = jaxtyping.jaxtyped(typechecker=beartype)


@checked
def add(a: Float[Tensor, "n 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return (a + b)[: len(b) if float(a.sum()) >= 0 else 1]


@checked
def count(times: int) -> str:
    return "x" * times if times else 0  # pyright: ignore[reportReturnType]


@checked
@dataclass(frozen=True)
class Pair:
    a: Float[Tensor, "n 3"]
    b: Float[Tensor, " n"]
    name: str = ""

    @checked
    def mean(self, of: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return of.mean(dim=1) if self.name else of


@checked
def rows(a: Float[Tensor, "n 3"]) -> Iterator[Float[Tensor, " 3"]]:
    yield from a


@checked
def whole(a: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    inner = add(torch.ones(5, 3), torch.ones(5, 3))  # axes of the same name, of another size
    assert len(inner) == 5
    return a


def test_what_fits_goes_through() -> None:
    ones = torch.ones(2, 3)
    assert torch.equal(add(ones, ones), 2 * ones) and count(2) == "xx"
    assert Pair(ones, torch.ones(2), "a").mean(ones).shape == (2,)
    assert len(list(rows(ones))) == 2 and torch.equal(whole(ones), ones)


@pytest.mark.parametrize(
    "call",
    [
        lambda: add(torch.ones(2, 3), torch.ones(4, 3)),
        lambda: add(torch.ones(2, 3), b=torch.ones(2, 4)),
        lambda: add(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)),
        lambda: add(-torch.ones(2, 3), torch.ones(2, 3)),
        lambda: Pair(torch.ones(2, 3), torch.ones(4)),
        lambda: Pair(torch.ones(2, 3), torch.ones(2), name=3),  # pyright: ignore[reportArgumentType]
        lambda: Pair(torch.ones(2, 3), torch.ones(2)).mean(torch.ones(2, 3)),
        lambda: rows(torch.ones(2, 4)),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize("times", ["2", 0])
def test_types_without_shapes_are_checked_too(times: object) -> None:
    with pytest.raises(BeartypeException):
        count(times)  # pyright: ignore[reportArgumentType]

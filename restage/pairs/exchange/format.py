"""What the menu holds of a form of data sets: how it is written and read, and what a data card says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from restage.pairs.exchange.exported import PairSet
from restage.pairs.exchange.foreign_pair import ForeignPair
from restage.records import Progress

__all__ = ["PairFormat"]


@dataclass(frozen=True, kw_only=True)
class PairFormat:
    """A form of pair data sets; each is a file of its own, and a line in the menu `FORMATS`."""

    description: str
    """What lies where, in a sentence for the data card."""
    read: Callable[[Path], Iterator[ForeignPair]]
    """Yields the pairs of a folder as they are; `bring_in` checks them."""
    is_in: Callable[[Path], bool] | None = None
    """Tells whether a folder looks like this form; None if the form has to be named."""
    export: Callable[[PairSet, Path], Iterator[Progress]] | None = None
    """Writes a set into a folder, where a file that is there already is whole and stays; None if it is only read."""
    card_header: tuple[str, ...] = ()
    """Lines for the YAML header of the data card."""

"""Seals of small JSON records: a hash of a record inside it, so that a changed byte of it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from restage.records import canonical_json

__all__ = ["has_right_seal", "seal"]

SEAL = "seal"
"""Key under which a record holds its seal."""


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 of the canonical JSON of all else in it."""
    content = {name: value for name, value in record.items() if name != SEAL}
    return {**content, SEAL: hashlib.sha256(canonical_json(content).encode()).hexdigest()}


def has_right_seal(record: Mapping[str, Any], *, is_required: bool) -> bool:
    """Whether the record is as it was sealed.

    Args:
        record: to look at.
        is_required: whether it must have a seal, or may be of an older version that had none.
    """
    if SEAL not in record:
        return not is_required
    return seal(record)[SEAL] == record[SEAL]

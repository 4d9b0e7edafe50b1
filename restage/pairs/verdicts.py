"""What readers see of stored pairs: the rule that they are judged by, and the pairs that are left out.

A rule can be changed without making a picture: `restage pairs RUN --rejudge`. Shards never change: a pair that
`restage verify --repair` finds wrong is added to the next version of a list beside them, `left-out-<version>.json`,
which also holds what the one before held; readers follow the last version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restage.pairs.files import Files
from restage.pairs.score import PairRule, PairScores, judge
from restage.records import InputError, canonical_json, content_id, parse_json, seal, to_plain

__all__ = ["NOT_STORED", "add_left_out", "current_rule", "read_left_out", "rule_id", "set_rule", "verdict_of"]

RULE_FILE = "rule.json"

NOT_STORED = "accepted by the rule, but its pictures were not stored"
"""Reason of a pair that waits until `rejudge` has its shard made again."""


@dataclass(frozen=True, kw_only=True)
class RuleRecord:
    """What a `rule.json` says."""

    id: str
    rule: PairRule


def rule_id(rule: PairRule) -> str:
    """Content id of a rule's thresholds and version."""
    return content_id("rule", rule)


def current_rule(files: Files) -> PairRule | None:
    """Return the rule that holds for these pairs; None if none is recorded, so that verdicts stand as stored.

    Raises:
        InputError: the record cannot be read.
    """
    if not files.exists(RULE_FILE):
        return None
    record: RuleRecord = parse_json(files.read(RULE_FILE), RuleRecord, where=files.where(RULE_FILE))
    if not record.rule.has_thresholds:
        raise InputError(f"{files.where(RULE_FILE)}: rule: expected all thresholds, got {record.rule}")
    return record.rule


def set_rule(files: Files, rule: PairRule) -> None:
    """Record the rule that holds from now on."""
    record = {"id": rule_id(rule), "rule": to_plain(rule)}
    files.write(RULE_FILE, (canonical_json(record) + "\n").encode())


def verdict_of(row: Mapping[str, Any], rule: PairRule) -> dict[str, Any]:
    """Return a sidecar row with the verdict of a rule on its scores in place of the stored verdict."""
    scores = PairScores(**{name: float("nan") if row[name] is None else row[name] for name in PairScores._fields})
    reason = judge(scores, rule)
    if not reason and not row["accepted"]:
        reason = NOT_STORED
    return {**row, "accepted": not reason, "reason": reason, "rule_version": rule.version}


PREFIX, SUFFIX = "left-out-", ".json"


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """What a version of the list says."""

    pairs: Mapping[str, str]
    """Reasons by id."""


def is_left_out_list(name: str) -> bool:
    """Whether a file of this name is a version of the list."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX) and name[len(PREFIX) : -len(SUFFIX)].isdigit()


def _versions(files: Files) -> list[str]:
    return [name for name in files.names() if is_left_out_list(name)]


def read_left_out(files: Files) -> dict[str, str]:
    """Return the reasons of the pairs to leave out, by id; empty if there is no list."""
    versions = _versions(files)
    if not versions:
        return {}
    try:
        record = parse_json(files.read(versions[-1]), _LeftOut, where=files.where(versions[-1]))
    except InputError as error:
        raise InputError(f"{error}; run: restage verify RUN --repair") from None
    return dict(record.pairs)


def add_left_out(files: Files, pairs: Mapping[str, str]) -> str:
    """Write the next version of the list with these pairs and their reasons added; returns its name."""
    versions = _versions(files)
    number = int(versions[-1].removeprefix(PREFIX).removesuffix(SUFFIX)) + 1 if versions else 1
    # A new version, never an overwritten one: object stores have no rename, and a reader may be at work.
    name = f"{PREFIX}{number:04d}{SUFFIX}"
    record = seal({"version": number, "pairs": {**read_left_out(files), **pairs}})
    files.write(name, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return name


def mark_left_out(row: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return a sidecar row as readers see it: a pair of the list counts as rejected, and says why."""
    reason = left_out.get(row["id"])
    return dict(row) if reason is None else {**row, "accepted": False, "reason": f"left out: {reason}"}

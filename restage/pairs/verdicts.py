"""The rule that a set of pairs is judged by: a record beside the shards, and its verdict on stored scores.

A rule can be changed without making a picture: `restage pairs RUN --rejudge` (see `rejudge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restage.pairs.files import Files
from restage.pairs.score import PairRule, PairScores, judge
from restage.records import InputError, canonical_json, content_id, parse_json, to_plain

__all__ = ["NOT_STORED", "current_rule", "rule_id", "set_rule", "verdict_of"]

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

"""Checks whether the image pairs of a run are what was written, and show what they say.

In the order of the work: `shards` (hashes, tar against sidecar), `pictures` and `captions` (what hashes cannot tell),
`examine` (a shard), `repeats` and `whole` (the set), `folder` (manifest, mark, what does not belong there), `check`
(all of them); `repair` takes out what is bad, `sheets` shows it. `findings.REASONS` is the menu.
"""

from __future__ import annotations

from restage.pairs.verify.check import VerifyConfig, VerifyResult, check_pairs, verify_pairs
from restage.pairs.verify.findings import REASONS, Finding

__all__ = ["REASONS", "Finding", "VerifyConfig", "VerifyResult", "check_pairs", "verify_pairs"]

"""`restage export RUN --format ...`: a folder with the accepted pairs and a data card, whole or not at all.

An export is made beside its place, file by file, and renamed at the end; one that was stopped goes on where it was. The
card has the form of those on the Hugging Face hub: Markdown below a YAML header.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.pairs.exchange import FORMATS
from restage.pairs.exchange.foreign import PairFormat, PairSet, open_set
from restage.pairs.files import is_url, open_files
from restage.pairs.score import PairScores
from restage.pairs.tasks import read_plan
from restage.records import (
    InputError,
    Progress,
    content_id,
    is_disk_full,
    read_json,
    to_plain,
    write_atomically,
    write_json,
)
from restage.run.layout import RUN_RECORD, STAGE_MARK
from restage.run.reading import StageMark, read_run_record
from restage.scenes.io.images import open_picture

__all__ = ["SetFacts", "collect_facts", "export_pairs", "render_card"]

NUM_BINS = 10
BAR_WIDTH = 24
COSINE_RANGE = (-1.0, 1.0)
SCORE_RANGES = {"change": (0.0, 0.5), "mask_share": (0.0, 1.0)}
"""Ranges of histograms; the other scores are cosines in [-1, 1]."""
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "n>100M")
"""The hub's names of sizes, each ten times the one before."""


@dataclass
class SetFacts:
    """What a card says; collected shard by shard."""

    name: str
    made: Counter[str] = field(default_factory=Counter)
    """Number of pairs by kind of edit, accepted or not."""
    accepted: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # number of rejected pairs by reason
    histograms: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of accepted pairs by score, in `NUM_BINS` bins each."""
    unscored: Counter[str] = field(default_factory=Counter)
    writers: Counter[str] = field(default_factory=Counter)
    """Number of accepted pairs by the writer of the prompt."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of shards by the size of their first picture."""
    rule: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _count(facts: SetFacts, row: Mapping[str, Any]) -> None:
    facts.made[row["kind"]] += 1
    if not row["accepted"]:
        facts.reasons[row["reason"]] += 1
        return
    facts.accepted[row["kind"]] += 1
    for name in PairScores._fields:
        value = row.get(name)
        if value is None or not math.isfinite(value):
            facts.unscored[name] += 1
            continue
        low, high = SCORE_RANGES.get(name, COSINE_RANGE)
        place = min(max(int((value - low) / (high - low) * NUM_BINS), 0), NUM_BINS - 1)
        facts.histograms.setdefault(name, [0] * NUM_BINS)[place] += 1


def collect_facts(pair_set: PairSet, run: Path | None) -> SetFacts:
    """Read the rows and records of a set shard by shard, and what its run, if it has one, says of itself."""
    facts = SetFacts(name=run.name if run else "pairs")
    for index in pair_set.marks:
        for row in pair_set.rows(index):
            _count(facts, row)
        for place, pair in enumerate(pair_set.pairs(index)):
            facts.writers[pair.record["prompt"].get("writer", "unknown")] += 1
            if place == 0:
                width, height = open_picture(pair.parts["source.png"], pair.id).size
                facts.sizes[f"{width}x{height}"] += 1
    facts.provenance = _provenance(pair_set, run)
    rule = to_plain(pair_set.reader.rule) if pair_set.reader.rule else None
    facts.rule = rule or facts.provenance.get("config", {}).get("rule")
    return facts


def _provenance(pair_set: PairSet, run: Path | None) -> dict[str, Any]:
    """Return the models, seed, code and config that a run has recorded; what it lacks is left out."""
    found: dict[str, Any] = {"set": pair_set.id}
    if plan := read_plan(pair_set.reader.files):
        found |= {"models": plan.maker, "plan": plan.id, "generate": plan.generate}
    if run is None:
        return found
    if (run / RUN_RECORD).exists():
        record = read_run_record(run)
        found |= {"run": record.id, "seed": record.seed, "git_commit": record.git_commit, "versions": record.versions}
        found["models_sha256"] = record.config.get("models_sha256")
    if (run / "pairs" / STAGE_MARK).exists():
        found["config"] = read_json(run / "pairs" / STAGE_MARK, StageMark).config
    return {name: value for name, value in found.items() if value}


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join(['---'] + ['---:'] * (len(head) - 1))} |"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"


def _histogram(name: str, counts: Sequence[int]) -> Iterator[str]:
    low, high = SCORE_RANGES.get(name, COSINE_RANGE)
    step, most = (high - low) / NUM_BINS, max(*counts, 1)
    yield f"**{name}**"
    yield "```"
    for place, count in enumerate(counts):
        start = low + place * step
        yield f"{start:6.2f} to {start + step:5.2f}  {'#' * round(BAR_WIDTH * count / most):<{BAR_WIDTH}} {count}"
    yield "```"


def _limits(facts: SetFacts) -> Iterator[str]:
    yield "- Pictures, edits and captions are machine-made unless the provenance says otherwise; nobody looked at each."
    yield "- Pairs were chosen by CLIP scores: what that CLIP does not see is not filtered, and its biases stay."
    yield "- A mask says where a pair was allowed to differ, and reaches beyond what did."
    if facts.unscored:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(facts.unscored.items()))
        yield f"- Not scored, hence not in the histograms: {names}."
    if len(facts.sizes) > 1:
        yield f"- Pictures have several sizes: {', '.join(sorted(facts.sizes))}."
    if any(reason.startswith("left out") for reason in facts.reasons):
        yield "- Pairs that `restage verify` found wrong are left out; the reasons are listed above."


def render_card(facts: SetFacts, form: str) -> str:
    """Write the card of an export in a form of the menu `FORMATS`, as Markdown."""
    return "\n".join(_lines(facts, FORMATS[form]))


def _lines(facts: SetFacts, form: PairFormat) -> Iterator[str]:
    category = SIZES[min(max(len(str(facts.accepted.total())) - 3, 0), len(SIZES) - 1)]
    yield from ("---", f"pretty_name: {json.dumps(facts.name)}", "task_categories:", "- image-to-image")
    yield from ("tags:", "- image-editing", "- instruct-pix2pix", "- synthetic", "size_categories:", f"- {category}")
    yield from (*form.card_header, "---", "")
    yield from (f"# {facts.name}: image pairs for instruction-based editing", "")
    yield (
        f"{facts.accepted.total()} pairs of a picture before and after an edit, with captions and instruction, made "
        f"by Restage. Picture size: {', '.join(sorted(facts.sizes))} pixels."
    )
    yield from ("", form.description, "", "## Counts", "")
    counts = [(kind, made, facts.accepted[kind]) for kind, made in sorted(facts.made.items())]
    counts.append(("all", facts.made.total(), facts.accepted.total()))
    rows = [(kind, made, accepted, f"{accepted / max(made, 1):.3f}") for kind, made, accepted in counts]
    yield from _table(("kind of edit", "made", "accepted", "yield"), rows)
    if facts.reasons:
        yield from ("", *_table(("rejected because", "pairs"), facts.reasons.most_common()))
    yield from ("", "## Rule", "")
    yield from _table(("setting", "value"), list(facts.rule.items())) if facts.rule else ["None is recorded."]
    writers = ", ".join(f"{writer} ({count})" for writer, count in facts.writers.most_common())
    yield from ("", "## Provenance", "", f"Prompts written by: {writers}.", "")
    yield from ("```json", json.dumps(facts.provenance, indent=1, sort_keys=True), "```", "")
    yield from ("## Scores of the pairs", "")
    for name in (name for name in PairScores._fields if name in facts.histograms):
        yield from (*_histogram(name, facts.histograms[name]), "")
    yield from ("## Known limits", "", *_limits(facts), "")


EXPORT_RECORD = "export.json"
"""In the folder of an export: what it was made from."""


def export_pairs(path: str, out: Path, form: str, *, store: str = "") -> Iterator[Progress]:
    """Export the accepted pairs of a run, so that `out` appears only when all of it is there.

    `path` is a run, or a folder or URL of shards; `store` is the URL of the store that a run's pairs lie in, if any.

    Raises:
        InputError: there are no pairs, the form cannot be written, `out` exists and is not this same export, or a
            stopped export of another set is in the way.
    """
    writers = {name: found.export for name, found in FORMATS.items() if found.export is not None}
    if form not in writers:
        raise InputError(f"unknown format {form!r}; known: {', '.join(writers)}")
    run = None if is_url(path) or not (Path(path) / "pairs").is_dir() else Path(path)
    pair_set = open_set(open_files(run / "pairs" if run else path, store=store))
    record = {"id": content_id("export", {"form": form, "set": pair_set.id}), "form": form, "set": pair_set.id}
    if out.exists():
        if (out / EXPORT_RECORD).exists() and read_json(out / EXPORT_RECORD) == record:
            yield Progress(stage="export", done=1, total=1, note="already done")
            return
        raise InputError(f"{out} exists and is not this export; name another folder with --out")
    work = out.with_name(f".{out.name}.unfinished")
    if (work / EXPORT_RECORD).exists() and read_json(work / EXPORT_RECORD) != record:
        raise InputError(f"{work} holds a stopped export of other pairs; delete it, or name another folder with --out")
    is_new = not work.exists()
    try:
        write_json(work / EXPORT_RECORD, record)
        yield from writers[form](pair_set, work)
        with write_atomically(work / "README.md") as temporary:
            temporary.write_text(render_card(collect_facts(pair_set, run), form), encoding="utf-8")
    except Exception as error:
        if is_new and not is_disk_full(error):  # the same would fail again, so there is nothing to go on from
            shutil.rmtree(work)
        raise
    work.rename(out)
    total = len(pair_set.marks)
    yield Progress(stage="export", done=total, total=total, note=str(out))

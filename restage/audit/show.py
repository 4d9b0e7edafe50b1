"""What a run holds, in lines for a terminal, and what differs between two, from their records alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from restage.records import InputError, Score, file_sha256, read_json, to_plain
from restage.run.layout import (
    CLIP_FRAMES,
    CLIPS,
    EDIT_CASES,
    PAGE,
    PROMPTS,
    SCORES,
    SPLATS,
    STAGES,
)
from restage.run.profile import add_up
from restage.run.reading import StageMark, flat_items, read_fits, read_marks, read_results, read_run_record
from restage.scores.definitions import metrics_shown_in
from restage.scores.rows import read_scores
from restage.scores.statistics import clustered_estimate
from restage.scores.tables import markdown_table, method_table

__all__ = ["Changed", "RunDifference", "ScoreGap", "changed_values", "compare_runs", "describe_difference"]
__all__ += ["describe_profile", "describe_run", "difference_to_plain", "profile_to_plain", "run_to_plain"]
__all__ += ["score_gaps"]

MAX_EDIT_LINES = 24
"""Edits that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class CampaignStatus:
    """What `restage show` says of a `campaign.json`."""

    status: str
    pairs: Mapping[str, int]
    acceptance: float
    workers: int
    pairs_per_s: float
    pairs_per_s_by_device: Mapping[str, float]
    hours_left: float | None = None
    failures: Mapping[str, int] = field(default_factory=dict)


def run_to_plain(run: Path) -> dict[str, Any]:
    """What `describe_run` says and more, as plain data for JSON: every record; a score that is NaN is null there."""
    rows = [to_plain(row) for row in (read_scores(run / SCORES) if (run / SCORES).exists() else [])]
    for row in rows:
        row.update({name: None for name, value in row.items() if isinstance(value, float) and math.isnan(value)})
    return to_plain(
        {
            "run": read_run_record(run),
            "stages": read_marks(run),
            "scenes": read_fits(run),
            "edits": {folder.relative_to(run).as_posix(): record for folder, record in read_results(run).items()},
            "scores": rows,
            "page": str(run / PAGE) if (run / PAGE).exists() else None,
        }
    )


def profile_to_plain(run: Path) -> dict[str, Any]:
    """What `describe_profile` says, as plain data for JSON."""
    return to_plain(add_up(*(session.profile for session in read_run_record(run).sessions)))


def _scene_lines(run: Path) -> Iterator[str]:
    for name, fit in read_fits(run).items():
        if fit.generated_from:
            sampled = fit.sampled_views_psnr_db
            agreed = "" if sampled is None else f", {sampled:.1f} dB on the views that were sampled"
            yield f"  scene {name}: {fit.num_splats} splats from {fit.generated_from!r}{agreed}, in {fit.seconds:.0f} s"
            yield from (f"    note: {text}" for text in fit.notes)
            continue
        psnr_db = fit.held_out_psnr_db
        psnr = "nothing held out" if psnr_db is None else f"{psnr_db:.1f} dB on held-out views"
        yield f"  scene {name}: {fit.num_splats} splats, {psnr}, fitted in {fit.seconds:.0f} s"
        yield from (f"    note: {text}" for text in fit.notes)


def _clip_lines(run: Path) -> Iterator[str]:
    for path in sorted(run.glob(CLIPS)):
        count, rate = (
            len(list((path.parent / CLIP_FRAMES).glob("*.png"))),
            read_json(path, dict[str, Any])["frames_per_s"],
        )
        yield f"  clip {path.parent.name}: {count} frames, {rate:g} a second"


def _edit_lines(run: Path) -> Iterator[str]:
    found = read_results(run)
    if len(found) <= MAX_EDIT_LINES:
        for folder, record in found.items():
            yield f"  edit {folder.relative_to(run / 'edit').as_posix()}: {record.status}"
        return
    counts = Counter((folder.parent.name, record.status) for folder, record in found.items())
    for (contender, status), count in sorted(counts.items()):
        yield f"  {count} edits by {contender}: {status}"


def _score_lines(run: Path) -> Iterator[str]:
    if (run / SCORES).exists():
        yield from markdown_table(method_table(read_scores(run / SCORES))).splitlines()
        yield f"where a number comes from: restage show {run} --row N, the row of {SCORES}"


def _campaign_lines(run: Path) -> Iterator[str]:
    path = run / "pairs" / "campaign.json"
    if not path.exists():
        return
    found = read_json(path, CampaignStatus)
    left = f", {found.hours_left:.1f} h left" if found.hours_left and found.status == "running" else ""
    yield (
        f"  campaign {found.status}: {found.pairs.get('done', 0)} of {found.pairs.get('all', 0)} pairs, "
        f"{found.acceptance:.0%} accepted, {found.pairs_per_s:.3g} pairs/s of {found.workers} workers{left}"
    )
    yield from (f"    {name}: {pace:.3g} pairs/s" for name, pace in found.pairs_per_s_by_device.items())
    yield from (f"    failed {count} times: {reason}" for reason, count in found.failures.items())


def describe_run(run: Path) -> list[str]:
    """What a run holds: its id, each stage with its facts, its edits, its table of methods, and where to look next."""
    record, marks = read_run_record(run), read_marks(run)
    lines = [
        f"{run}: {record.id}, {record.status}, seed {record.seed}",
        f"made by: {' '.join(record.command)}  ({record.wall_s:.0f} s, {len(record.sessions)} sessions)",
    ]
    for stage in STAGES:
        if stage in marks:
            facts = "  ".join(f"{name}={_short(value)}" for name, value in marks[stage].facts.items())
            lines.append(f"{stage:<8} done  {facts}")
        elif (run / stage).exists():
            # A single fit or edit marks no stage as finished, and is none the less.
            lines.append(f"{stage:<8} in part")
    lines += [*_campaign_lines(run), *_scene_lines(run), *_clip_lines(run), *_edit_lines(run), *_score_lines(run)]
    if (run / PAGE).exists():
        lines.append(f"page: {run / PAGE}")
    return lines


def describe_profile(run: Path) -> list[str]:
    """Where the time of a run went in all its sessions: each stage with its parts, in seconds."""
    stages = add_up(*(session.profile for session in read_run_record(run).sessions))
    if not stages:
        raise InputError(f"{run} does not say where its time went: it was made by an earlier version, or is at work")
    lines = [f"{'stage':<10} {'part':<22} {'wall s':>9} {'share':>6} {'CPU s':>9} {'times':>8}"]
    for name in sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES)):
        found = stages[name]
        for part, took in found.all_parts.items():
            share = took.wall_s / max(found.wall_s, 1e-9)
            times = took.times or ""
            lines.append(f"{name:<10} {part:<22} {took.wall_s:>9.2f} {share:>6.0%} {took.cpu_s:>9.2f} {times:>8}")
        waited = f"{found.queued_s:.2f} s of waiting for a core, threads: {found.num_threads}"
        lines.append(f"{name:<10} {'all':<22} {found.wall_s:>9.2f} {1:>6.0%} {found.cpu_s:>9.2f}  {waited}")
    return lines


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


ABSENT = "(not there)"
MAX_LINES = 40
"""Differences of one kind that are printed."""


class Changed(NamedTuple):
    """One value that is not the same in both runs."""

    where: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class ScoreGap:
    """How the mean of a metric of a method differs, second minus first, over the results that both runs have."""

    method: str
    editor: str
    metric: str
    first: float
    second: float
    gap: float
    standard_error: float
    """Standard error of the gap, clustered by scene; NaN with fewer than two scenes."""
    reach: float
    """Half of the gap's 95 % interval; NaN with fewer than two scenes."""
    num_results: int

    @property
    def is_change(self) -> bool:
        """Whether any result differs, as far as means and their errors tell."""
        return self.first != self.second or self.standard_error > 0


@dataclass(frozen=True, kw_only=True)
class RunDifference:
    """All that differs between two runs: `data` and `weights` by their hashes, `only_in_one` in numbers of results."""

    first: Path
    second: Path
    config: tuple[Changed, ...]
    versions: tuple[Changed, ...]
    machine: tuple[Changed, ...]
    data: tuple[Changed, ...]
    weights: tuple[Changed, ...]
    scores: tuple[ScoreGap, ...]
    only_in_one: tuple[Changed, ...]


def compare_runs(first: Path, second: Path) -> RunDifference:
    """Compare two runs."""
    facts = [_facts(run) for run in (first, second)]
    named = {name: changed_values(facts[0][name], facts[1][name]) for name in facts[0]}
    scores = [_scores(run) for run in (first, second)]
    counts = [_result_counts(rows) for rows in scores]
    only_in_one = changed_values(counts[0], counts[1])
    changed = tuple(gap for gap in _gaps(*scores) if gap.is_change)
    return RunDifference(first=first, second=second, **named, scores=changed, only_in_one=only_in_one)


def score_gaps(first: Path, second: Path) -> list[ScoreGap]:
    """How each metric of each method differs between two runs, over the results of both, equal ones among them."""
    return list(_gaps(_scores(first), _scores(second)))


def _facts(run: Path) -> dict[str, dict[str, str]]:
    record, marks = read_run_record(run), read_marks(run)
    configs = {**record.config, **{name: mark.config for name, mark in marks.items()}, "seed": record.seed}
    models = configs.pop("models_sha256", {})
    paths = [path for pattern in (PROMPTS, EDIT_CASES, "pairs/*.done") for path in sorted(run.glob(pattern))]
    data = {path.relative_to(run).as_posix(): file_sha256(path)[:16] for path in paths}
    data |= {f"views of {name}": (fit.capture_sha256 or "unknown")[:16] for name, fit in read_fits(run).items()}
    return {
        "config": dict(flat_items(configs)),
        "versions": dict(flat_items({**record.versions, "commit": record.git_commit})),
        "machine": dict(flat_items(record.machine)),
        "data": data,
        "weights": {**dict(flat_items(models)), **_weights(run, marks)},
    }


def _weights(run: Path, marks: Mapping[str, StageMark]) -> dict[str, str]:
    splats = sorted(run.glob(f"scenes/*/{SPLATS}"))
    found = {f"splats of {path.parent.name}": file_sha256(path)[:16] for path in splats}
    trained = marks["train"].files if "train" in marks else {}
    weights = {name for name in trained if name.endswith((".safetensors", ".bin")) and "/cache/" not in name}
    found |= {name: value[:16] for name, value in trained.items() if name in weights}
    used = {str(record.inputs.get("model_sha256", ""))[:16] for record in read_results(run).values()} - {""}
    return found | ({"models of the results": ", ".join(sorted(used))} if used else {})


def changed_values(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Changed, ...]:
    """Return the named values that are not the same in both; one that is missing says so."""
    pairs = [(name, first.get(name, ABSENT), second.get(name, ABSENT)) for name in dict.fromkeys([*first, *second])]
    return tuple(Changed(name, one, other) for name, one, other in pairs if one != other)


def _scores(run: Path) -> dict[tuple[str, ...], Score]:
    rows = read_scores(run / SCORES) if (run / SCORES).exists() else []
    return {(row.method, row.editor, row.metric, row.scene, row.edit, str(row.seed)): row for row in rows}


def _result_counts(rows: Mapping[tuple[str, ...], Score]) -> dict[str, str]:
    counts = Counter(f"{method} {editor}" for method, editor, metric, *_ in rows if metric == "progress")
    return {name: f"{count} results" for name, count in counts.items()}


def _gaps(first: Mapping[tuple[str, ...], Score], second: Mapping[tuple[str, ...], Score]) -> Iterator[ScoreGap]:
    shared = [key for key in first if key in second]
    groups: dict[tuple[str, str, str], list[tuple[float, float, str]]] = {}
    for key in shared:
        one, other = first[key].value, second[key].value
        if key[2] in metrics_shown_in("diff") and not math.isnan(one) and not math.isnan(other):
            groups.setdefault((key[0], key[1], key[2]), []).append((one, other, key[3]))
    for (method, editor, metric), rows in groups.items():
        gap = clustered_estimate([two - one for one, two, _ in rows], [scene for *_, scene in rows])
        means = math.fsum(row[0] for row in rows) / len(rows), math.fsum(row[1] for row in rows) / len(rows)
        yield ScoreGap(
            method=method,
            editor=editor,
            metric=metric,
            first=means[0],
            second=means[1],
            gap=gap.mean,
            standard_error=gap.standard_error,
            reach=gap.reach,
            num_results=len(rows),
        )


def describe_difference(found: RunDifference) -> list[str]:
    """The differences by kind, one a line; what is the same is said to be."""
    lines = [f"{found.first} -> {found.second}"]
    kinds = {"config": found.config, "versions": found.versions, "machine": found.machine}
    kinds |= {"data": found.data, "weights": found.weights, "results": found.only_in_one}
    for kind, changed in kinds.items():
        if not changed:
            lines.append(f"{kind}: the same")
            continue
        lines.append(f"{kind}: {len(changed)} differ")
        lines += [f"  {one.where}: {_short(one.first)} -> {_short(one.second)}" for one in changed[:MAX_LINES]]
        if len(changed) > MAX_LINES:
            lines.append(f"  and {len(changed) - MAX_LINES} more; --json lists all")
    lines.append("scores: " + ("over the results of both, second minus first" if found.scores else "the same, or none"))
    for gap in found.scores:
        error = "" if math.isnan(gap.standard_error) else f" ± {gap.standard_error:.3g}"
        who = f"{gap.method} {gap.editor} {gap.metric}"
        change = f"{gap.first:.4g} -> {gap.second:.4g}"
        lines.append(f"  {who}: {change}, {gap.gap:+.3g}{error} over {gap.num_results} results")
    return lines


def difference_to_plain(found: RunDifference) -> str:
    """All of it as JSON; NaN becomes null."""
    plain = to_plain(asdict(found))
    for gap in plain["scores"]:
        gap.update({name: None for name in ("standard_error", "reach") if math.isnan(gap[name])})
    return json.dumps(plain, indent=1, ensure_ascii=False)

"""The prompts stage: fills `<run>/prompts/prompts.jsonl` from a writer, or from a file of the user's.

Beside it lie `rejects.jsonl` (what was written and not kept, with reasons), `forms.jsonl` (what is known of each prompt
form, if forms learn), and `llm/` (the answers of a language model).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.prompts import orders
from restage.prompts.config import PromptsConfig
from restage.prompts.forms import Arm, FormChooser, make_arms
from restage.prompts.grammar import read_captions
from restage.prompts.rejects import Duplicates, TokenLimits
from restage.prompts.store import copy_pictures, prompt_line, read_prompts, write_prompts
from restage.prompts.trials import Learned, measure_yield, read_trials
from restage.prompts.writers import WRITERS
from restage.records import InputError, Progress, canonical_json, file_sha256, to_plain, write_atomically
from restage.run.folder import RunFolder
from restage.run.layout import MANIFEST
from restage.run.paid import AskingStopped

__all__ = ["identity_of", "run_prompts"]


def identity_of(config: PromptsConfig) -> dict[str, Any]:
    """Return what decides what is written; the rates and limits of a language model do not."""
    return {
        **to_plain(config),
        "llm": config.llm.identity() if WRITERS[config.writer].asks_model else {},
        "captions": _sha256(config.captions) if config.captions else None,
        "learn_from": [_sha256(run / MANIFEST) for run in config.learn_from],
    }


def _sha256(path: Path) -> str:
    """Hash a file, so that its content counts and not its place."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; captions are a text file, learn_from takes runs with finished pairs")
    return file_sha256(path)


@dataclass(frozen=True)
class _Job:
    config: PromptsConfig
    writer: orders.Writer
    plan: orders.Plan
    arms: tuple[Arm, ...] = ()
    learned: Learned = Learned((), {})

    def answers(self, limits: TokenLimits) -> Iterator[orders.Answer]:
        count, known = self.config.num_prompts, Duplicates(self.config.near_duplicates)
        quota = None if self.config.captions else orders.NounQuota(self.config.max_noun_share, count)
        return orders.collect(self.writer, self.plan, num_pairs=count, duplicates=known, quota=quota, limits=limits)


def _prepare(config: PromptsConfig, seed: int, cache: Path) -> _Job:
    captions = read_captions(config.captions) if config.captions else ()
    learned = read_trials(config.learn_from)
    cache = config.llm.cache or cache
    settings = orders.WriterSettings(llm=config.llm, cache=cache, examples=learned.examples, edition=config.edition)
    writer = WRITERS[config.writer](settings)
    if captions:
        return _Job(config, writer, orders.CaptionPlan(captions, config.kinds, seed))
    if not config.is_learning:
        return _Job(config, writer, orders.KindPlan(config.kinds, config.writer, seed, is_strict=writer.is_endless))
    if writer.form_space is None:
        with_forms = ", ".join(name for name, writer in WRITERS.items() if writer.form_space)
        raise InputError(f"writer {config.writer!r} has no forms to learn; writers that have: {with_forms}")
    arms = make_arms(writer.form_space, config.kinds, learned.trials, config=config.forms, seed=seed)
    return _Job(config, writer, orders.FormPlan(FormChooser(arms, config.forms, seed), seed), arms, learned)


def _reject_line(answer: orders.Answer) -> str:
    order, pair = answer.order, None if answer.pair is None else to_plain(answer.pair)
    row = {"reason": answer.reason, "kind": order.kind, "form": order.form_text, "caption": order.caption}
    row |= {"request": answer.request, "raw": answer.raw, "pair": pair}
    return canonical_json({key: value for key, value in row.items() if value}) + "\n"


class _NothingKept(Exception):
    """Takes away the file of pairs, which would be empty; that of rejects stays."""


@dataclass
class _Tally:
    kinds: Counter[str]
    reasons: Counter[str]
    forms: Counter[str]

    @property
    def num_pairs(self) -> int:
        return self.kinds.total()

    def count(self, answer: orders.Answer) -> None:
        if answer.reason:
            self.reasons[answer.reason] += 1
        else:
            self.kinds[answer.order.kind] += 1
            self.forms[answer.order.form_text] += 1


def _write_files(folder: Path, job: _Job, tally: _Tally, limits: TokenLimits) -> Iterator[Progress | AskingStopped]:
    """Write pairs and rejects as they come; the files appear at the end, and without any pair that of rejects alone."""
    config, stopped = job.config, None
    every = max(20, config.num_prompts // 500)
    rejects = folder / "rejects.jsonl"
    with write_atomically(rejects) as reject_path, reject_path.open("w", encoding="utf-8") as rejected:
        with suppress(_NothingKept), write_atomically(folder / "prompts.jsonl") as path:
            with path.open("w", encoding="utf-8") as kept:
                try:
                    for number, answer in enumerate(job.answers(limits), start=1):
                        tally.count(answer)
                        if answer.reason or answer.pair is None:
                            rejected.write(_reject_line(answer))
                        else:
                            kept.write(prompt_line(answer.pair))
                        if number % every == 0:
                            note = answer.pair.instruction if answer.pair and not answer.reason else answer.reason
                            yield Progress(stage="prompts", done=tally.num_pairs, total=config.num_prompts, note=note)
                except AskingStopped as error:
                    stopped = error
            if not tally.num_pairs:
                raise _NothingKept
    if not tally.num_pairs:
        common = ", ".join(f"{reason} ({count})" for reason, count in tally.reasons.most_common(3))
        if tally.reasons:
            raise InputError(f"no prompt pair was written: {stopped or common}; what came instead is in {rejects}")
        rejects.unlink()
        raise InputError(f"no prompt pair was written: {stopped or 'the writer gave no answer'}")
    if stopped is not None:
        yield stopped


def _write_forms(path: Path, job: _Job, tally: _Tally) -> None:
    """Write a line for each form: its lineage, what is known of it, and how many pairs of this run have it."""
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for arm in job.arms:
            row = {
                "form": str(arm.form),
                "parent": "" if arm.is_original else str(arm.form.parent),
                "is_original": arm.is_original,
                "accepted": arm.num_accepted,
                "rejected": arm.num_rejected,
                "mean": round(arm.mean, 6),
                "lower": round(arm.lower, 6),
                "pairs": tally.forms[str(arm.form)],
                "control_pairs": tally.forms[f"control {arm.form}"],
            }
            file.write(canonical_json(row) + "\n")


def _copy(run: RunFolder, config: PromptsConfig, path: Path, limits: TokenLimits) -> Iterator[Progress]:
    """Take the user's own pairs; those that are too long become rejects, and the others stay."""
    found, folder = read_prompts(path), run.folder("prompts")
    reasons = {pair.id: limits.find(pair) for pair in found}
    pairs = tuple(pair for pair in found if not reasons[pair.id])
    rejects = [{"reason": reasons[pair.id], "pair": to_plain(pair)} for pair in found if reasons[pair.id]]
    if rejects:
        with write_atomically(folder / "rejects.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(canonical_json(row) + "\n" for row in rejects)
    if not pairs:
        raise InputError(f"{path} holds no pair that can be made: {rejects[0]['reason']}")
    for step in copy_pictures(pairs, path.parent, to=folder):
        if isinstance(step, Progress):
            yield step
        else:
            pairs = step
    write_prompts(folder / "prompts.jsonl", pairs)
    by_kind = dict(Counter(pair.kind for pair in pairs))
    facts: dict[str, Any] = {"rejects": dict(Counter(row["reason"] for row in rejects))} if rejects else {}
    run.mark_done("prompts", identity_of(config), num_prompts=len(pairs), by_kind=by_kind, **facts)
    note = f"{len(pairs)} prompt pairs"
    note += "".join(f"; {row['pair']['source'][:60]!r} was left out: {row['reason']}" for row in rejects[:3])
    note += f"; all {len(rejects)} that were left out are in rejects.jsonl" if len(rejects) > 3 else ""
    yield Progress(stage="prompts", done=len(pairs), total=len(pairs), note=note)


def run_prompts(
    run: RunFolder,
    config: PromptsConfig,
    *,
    limits: TokenLimits = TokenLimits(),  # noqa: B008
) -> Iterator[Progress]:
    """Write the prompt pairs of a run; the same run seed and config give the same file.

    If a limit on cost stops it, the pairs so far are written and the stage is not marked as done: the same command with
    a higher limit goes on and pays for nothing twice.

    Raises:
        InputError: the stage was finished with another config, the user's file cannot be used, or no pair was written.
    """
    if run.is_done("prompts", identity_of(config)):
        yield Progress(stage="prompts", done=1, total=1, note="already done")
        return
    if config.path is not None:
        yield from _copy(run, config, config.path, limits)
        return
    folder = run.folder("prompts")
    job, tally = _prepare(config, run.seed, folder / "llm"), _Tally(Counter(), Counter(), Counter())
    remark = job.writer.remark()
    if remark:
        yield Progress(stage="prompts", done=0, total=config.num_prompts, note=remark)
    for step in _write_files(folder, job, tally, limits):
        if isinstance(step, AskingStopped):
            note = f"stopped with {tally.num_pairs} of {config.num_prompts} pairs: {step}"
            yield Progress(stage="prompts", done=tally.num_pairs, total=config.num_prompts, note=note)
            return
        yield step
    if (said := job.writer.remark()) != remark:
        yield Progress(stage="prompts", done=tally.num_pairs, total=tally.num_pairs, note=said)
    facts = {"num_prompts": tally.num_pairs, "by_kind": dict(tally.kinds), "rejects": dict(tally.reasons)}
    if config.is_learning:
        _write_forms(folder / "forms.jsonl", job, tally)
        found = measure_yield([trial for trial in job.learned.trials if trial.is_control])
        facts |= {"learned_from_pairs": len(job.learned.trials), "control_pairs": found.num_pairs}
        if found.num_pairs:
            interval = [round(found.low, 4), round(found.high, 4)]
            facts |= {"control_yield": round(found.share, 4), "control_interval": interval}
    run.mark_done("prompts", identity_of(config), **facts, **job.writer.facts())
    yield Progress(stage="prompts", done=tally.num_pairs, total=tally.num_pairs, note=f"{tally.num_pairs} prompt pairs")

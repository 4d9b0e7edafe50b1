"""Rounds of prompts -> pairs -> forms: each round is a run whose forms are learned from the rounds before it.

The rounds lie at `<run>/rounds/00`, `01`, ...; finished ones are skipped, so a kill costs no more than a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.config import RoundsConfig
from restage.prompts.rejects import TokenLimits
from restage.prompts.stage import identity_of, run_prompts
from restage.prompts.trials import Yield, measure_yield, read_trials
from restage.records import Progress, derive_seed
from restage.run.folder import RunFolder
from restage.run.layout import STAGE_MARK

__all__ = ["RoundYield", "round_folders", "run_rounds", "yields_of_rounds"]


class RoundYield(NamedTuple):
    """The share of a round's pairs that was accepted."""

    control: Yield  # yield of the control slice: what the writer yields with nothing learned
    learned: Yield  # yield of the pairs whose forms were chosen


def round_folders(run: Path, num_rounds: int) -> list[Path]:
    """Return the run folders of the rounds, in order."""
    return [run / "rounds" / f"{index:02d}" for index in range(num_rounds)]


def yields_of_rounds(folders: list[Path]) -> list[RoundYield]:
    """Return the yields of finished rounds."""
    found = []
    for folder in folders:
        trials = read_trials([folder]).trials
        control = [trial for trial in trials if trial.is_control]
        learned = [trial for trial in trials if not trial.is_control]
        found.append(RoundYield(measure_yield(control), measure_yield(learned)))
    return found


def run_rounds(
    run: RunFolder,
    config: RoundsConfig,
    make_pairs: Callable[[RunFolder], Iterator[Progress]],
    *,
    pairs_config: Any = None,
    limits: TokenLimits = TokenLimits(),  # noqa: B008
) -> Iterator[Progress]:
    """Write prompts, make their pairs, learn from them, and again; refuses a round that has another config."""
    made: list[Path] = []
    for index, folder in enumerate(round_folders(run.path, config.num_rounds)):
        prompts = replace(config.prompts, learn_from=(*config.prompts.learn_from, *made))
        seed = derive_seed(run.seed, "round", index)
        round_run = RunFolder.open(folder, {"prompts": identity_of(prompts), "pairs": pairs_config}, seed=seed)
        if not (folder / "pairs" / STAGE_MARK).exists():
            yield from run_prompts(round_run, prompts, limits=limits)
            if not (folder / "prompts" / STAGE_MARK).exists():
                return  # a limit was reached, as the last note says
            yield from make_pairs(round_run)
            round_run.close("done")
        made.append(folder)
        (found,) = yields_of_rounds([folder])
        parts = [
            f"{name} {part.share:.2f} ({part.low:.2f} to {part.high:.2f}, {part.num_pairs} pairs)"
            for name, part in (("learned forms", found.learned), ("control", found.control))
            if part.num_pairs
        ]
        note = "accepted: " + ", ".join(parts)
        yield Progress(stage="rounds", done=index + 1, total=config.num_rounds, note=note)

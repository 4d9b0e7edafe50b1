"""Whether forms that learn raise the share of accepted pairs, on the miniature, against the control slice.

    python benchmarks/forms.py [folder] [rounds] [pairs per round] [seeds] [sampling steps]

Runs rounds of prompts -> pairs -> forms for each seed in `<folder>/<seed>` (default: runs/forms, 5 rounds of 96 pairs,
3 seeds: about 1,440 pairs at about 0.5 s on one quiet thread). Stop it at any time; the same command goes on. The last
line is JSON; `<folder>/forms.png` shows it. Yields are shares of accepted pairs, each with Wilson's 95 % interval over
the pairs of all seeds. Since a chooser can raise the yield by leaving hard kinds of edit out as far as their quotas
allow, the balanced yields weigh all kinds alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.pairs.config import PAIRS, CampaignConfig, PairsConfig
from restage.pairs.stage import run_campaign
from restage.pairs.tasks import LoadedMaker
from restage.prompts.config import PromptsConfig, RoundsConfig
from restage.prompts.rounds import round_folders, run_rounds
from restage.prompts.trials import Trial, measure_yield, read_trials
from restage.run.folder import open_run, working
from restage.run.models import models_in
from restage.run.progress import show_progress

NUM_RESAMPLES = 2000


def run_all(folder: Path, num_seeds: int, config: RoundsConfig, pairs: PairsConfig) -> float:
    """Run what is not done, round by round for all seeds, so that a stop leaves whole rounds; returns the seconds."""
    models = models_in()
    backbone, clip = load_backbone(models.text_to_image), load_clip(models.clip)
    start_s = time.monotonic()
    for num_rounds in range(1, config.num_rounds + 1):
        for seed in range(num_seeds):
            with working(open_run(folder / str(seed), seed=seed), "rounds") as run:
                part = replace(config, num_rounds=num_rounds)
                maker = LoadedMaker(backbone, clip, pairs.generate)
                make_pairs = partial(run_campaign, config=pairs, maker=maker, engine=CampaignConfig())
                show_progress(run_rounds(run, part, make_pairs, pairs_config=pairs))
    return time.monotonic() - start_s


def balanced(trials: Sequence[Trial]) -> float:
    """Mean over kinds of edit of the share that was accepted."""
    kinds: dict[str, list[bool]] = defaultdict(list)
    for trial in trials:
        kinds[trial.form.kind].append(trial.is_accepted)
    return float(np.mean([np.mean(accepted) for accepted in kinds.values()]))


def plain(trials: Sequence[Trial]) -> float:
    """Share that was accepted."""
    return float(np.mean([trial.is_accepted for trial in trials]))


def gain(
    learned: Sequence[Trial], control: Sequence[Trial], measure: Callable[[Sequence[Trial]], float]
) -> dict[str, float | list[float]]:
    """Learned minus control, with a 95 % interval from resampling the pairs within slice and kind of edit."""
    rng = np.random.default_rng(0)

    def resample(trials: Sequence[Trial]) -> list[Trial]:
        kinds: dict[str, list[Trial]] = defaultdict(list)
        for trial in trials:
            kinds[trial.form.kind].append(trial)
        return [group[index] for group in kinds.values() for index in rng.integers(len(group), size=len(group))]

    drawn = [measure(resample(learned)) - measure(resample(control)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "gain": round(measure(learned) - measure(control), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def summarize(rounds: Sequence[Sequence[Sequence[Trial]]]) -> dict[str, object]:
    """Return the figures of all seeds; `rounds[seed][round]` are trials."""
    num_rounds = len(rounds[0])
    found: dict[str, object] = {}
    for name, is_control in (("learned", False), ("control", True)):
        by_round = [
            [trial for seed in rounds for trial in seed[index] if trial.is_control == is_control]
            for index in range(num_rounds)
        ]
        found[name] = [
            {"share": round(y.share, 4), "low": round(y.low, 4), "high": round(y.high, 4), "pairs": y.num_pairs}
            for y in (measure_yield(trials) for trials in by_round)
        ]
        found[f"{name}_balanced"] = [round(balanced(trials), 4) for trials in by_round]
        found[f"{name}_by_seed"] = [
            [round(plain([t for t in trials if t.is_control == is_control]), 4) for trials in seed] for seed in rounds
        ]
    control = [trial for seed in rounds for trials in seed for trial in trials if trial.is_control]
    last = [trial for seed in rounds for trial in seed[-1] if not trial.is_control]
    whole = measure_yield(control)
    found["control_yield"] = [round(value, 4) for value in whole[:3]]
    found["last_round_gain"] = gain(last, control, plain)
    found["last_round_gain_balanced"] = gain(last, control, balanced)
    return found


def draw(path: Path, found: dict, num_seeds: int) -> None:
    """Yield over rounds, learned and control, with intervals; each seed as a dot."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for name, color, shift in (("learned", "tab:blue", 0.04), ("control", "tab:gray", -0.04)):
        rows = found[name]
        x = np.arange(1, len(rows) + 1)
        shares = np.array([row["share"] for row in rows])
        errors = np.array([[row["share"] - row["low"], row["high"] - row["share"]] for row in rows]).T
        label = {"learned": "forms chosen by what was learned", "control": "control slice"}[name]
        left.errorbar(x + shift, shares, yerr=errors, color=color, marker="o", capsize=3, label=label)
        for seed in found[f"{name}_by_seed"]:
            left.plot(x + shift, seed, ".", color=color, alpha=0.4, markersize=5)
        right.plot(x, found[f"{name}_balanced"], color=color, marker="o", label=label)
    left.set(xlabel="round", ylabel="accepted pairs per sampled pair", ylim=(0, 1), xticks=x)
    left.set_title(f"all pairs ({num_seeds} seeds, 95 % intervals)", fontsize=10)
    right.set(xlabel="round", xticks=x)
    right.set_title("all kinds of edit weighed alike", fontsize=10)
    left.legend(fontsize=8, loc="lower left", frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)


def main(
    folder: str = "runs/forms",
    num_rounds: int = 5,
    pairs_per_round: int = 96,
    num_seeds: int = 3,
    num_steps: int = PAIRS.generate.sampler.num_steps,
) -> None:
    """Run what is missing, then print a line for each round and all figures as JSON."""
    config = RoundsConfig(num_rounds=num_rounds, prompts=PromptsConfig(num_prompts=pairs_per_round, use_forms=True))
    sampler = replace(PAIRS.generate.sampler, num_steps=num_steps)
    pairs = replace(PAIRS, generate=replace(PAIRS.generate, sampler=sampler))
    seconds = run_all(Path(folder), num_seeds, config, pairs)
    rounds = [
        [read_trials([path]).trials for path in round_folders(Path(folder) / str(seed), num_rounds)]
        for seed in range(num_seeds)
    ]
    found = summarize(rounds)
    draw(Path(folder) / "forms.png", found, num_seeds)
    for index, (learned, control) in enumerate(zip(found["learned"], found["control"], strict=True), start=1):
        print(f"round {index}: learned {learned['share']:.3f}, control {control['share']:.3f}")
    facts = {
        "rounds": num_rounds,
        "pairs_per_round": pairs_per_round,
        "seeds": num_seeds,
        "steps": num_steps,
        "seconds": round(seconds),
    }
    print(json.dumps(facts | found))


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(argument) for argument in sys.argv[2:6]))

"""The stage `train`: from the accepted pairs of a run to its edit model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from restage.records import Progress, derive_seed
from restage.run.folder import RunFolder
from restage.train.edit_model import TrainConfig, load_start, train_edit_model
from restage.train.examples import TrainingPair

__all__ = ["run_train"]


def run_train(
    run: RunFolder,
    config: TrainConfig,
    *,
    start: Path,
    pairs: Iterable[TrainingPair] | None = None,
    store: str = "",
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train the run's edit model into `<run>/train`; see `train_edit_model` for what lies there.

    Args:
        run: the run whose `pairs` stage holds the pairs.
        config: how to train; its seed is combined with the run's.
        start: folder of the text-to-image model or edit model to start from.
        pairs: other pairs to train on, such as rendered ones; None takes those that the run accepted.
        store: URL of the store that the run's pairs lie in, if any.
        device: device to train on.

    Raises:
        InputError: there are no pairs, `start` holds no model, or the stage was finished with another config.
    """
    if run.is_done("train", config):
        yield Progress(stage="train", done=1, total=1, note="already done")
        return
    seed = derive_seed(run.seed, "train", config.training.seed)
    seeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    model = load_start(start, device)
    if pairs is None:
        from restage.pairs.files import open_files
        from restage.pairs.store import read_pairs  # needs pyarrow, which training on other pairs does not

        pairs = read_pairs(open_files(run.path / "pairs", store=store))
    yield from train_edit_model(pairs, model, run.folder("train"), seeded)
    run.mark_done("train", config, num_steps=config.training.num_steps)

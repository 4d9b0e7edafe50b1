"""Sub-commands that run stages: one for each, the demo that runs them all, and the training of its models.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import restage
from restage.records import InputError
from restage.run.folder import open_run, working
from restage.run.models import models_in
from restage.run.progress import say, show_progress

__all__ = [
    "ModelsArgument",
    "RunArgument",
    "RunSeedArgument",
    "StoreArgument",
    "build_miniature",
    "build_stage",
    "build_train",
    "demo",
]

RunArgument = Annotated[Path, arg(metavar="RUN", help="Folder of the run; it is made if it does not exist.")]
ModelsArgument = Annotated[
    Path | None, arg(metavar="FOLDER", help="Folder of the models to start from; default: the package's own.")
]
StoreArgument = Annotated[str, arg(metavar="URL")]
RunSeedArgument = Annotated[int, arg(help="Seed for a new run; ignored if the run exists.")]


def demo(*, out: Path = Path("runs/demo"), seed: int = 0, models: Path | None = None) -> None:
    """Go from prompts to the report page of an edited scene in about ten minutes on two cores.

    Example: restage demo --out runs/demo

    Ctrl-C stops it at any time, and the same command goes on from there. What is done is not done again.

    Args:
        out: Folder of the run.
        seed: Seed for prompts, pairs and noise.
        models: Folder of the models to start from; default: the ones that come with the package.
    """
    from restage.recipes import demo as run_demo
    from restage.recipes import demo_config

    found = models_in(models)
    show_progress(run_demo(out, demo_config(found), found, seed=seed))
    say(f"page: {out / 'report' / 'index.html'}")


def build_stage(stage: str, description: str) -> Callable[[], Callable[..., None]]:
    """Return the builder of a sub-command that runs one stage of a run, with the stage's config as its flags."""

    def build() -> Callable[..., None]:
        from restage.recipes import STAGES

        config_type, run_stage = STAGES[stage]
        writes = ("world", "scenes") if stage == "world" else (stage,)
        default = config_type()

        def command(
            run: Positional[RunArgument],
            *,
            config: Annotated[config_type, arg(name="")] = default,  # pyright: ignore
            models: ModelsArgument = None,
            run_seed: RunSeedArgument = 0,
        ) -> None:
            with working(open_run(run, seed=run_seed), *writes) as opened:
                last = show_progress(run_stage(opened, config, models_in(models)))
            say(f"{stage}: {run / stage}" + (f", {last.note}" if last and last.done < last.total else ""))

        command.__doc__ = description
        return command

    return build


def build_train() -> Callable[..., None]:
    """Build `restage train`."""
    from restage.train.edit_model import TrainConfig

    def train(
        run: Positional[RunArgument],
        *,
        config: Annotated[TrainConfig, arg(name="")] = TrainConfig(),  # noqa: B008
        store: StoreArgument = "",
        models: ModelsArgument = None,
        run_seed: RunSeedArgument = 0,
    ) -> None:
        """Train the edit model on a run's accepted pairs.

        Example: restage train runs/mine --training.num-steps 200

        Args:
            run: Folder of the run.
            config: How to train.
            store: Where the run's pairs lie, if not in its folder.
            models: Folder of the models to start from.
            run_seed: Seed for a new run.
        """
        from restage.train.stage import run_train

        with working(open_run(run, seed=run_seed)) as opened:
            show_progress(run_train(opened, config, start=models_in(models).edit_model, store=store))
        say(f"train: {run / 'train'}")

    return train


def build_miniature() -> Callable[..., None]:
    """Load `restage miniature` from the clone that this package lies in.

    Raises:
        InputError: the package was installed without its clone, which alone has the recipes.
    """
    clone = Path(restage.__file__).parents[1]
    if not (clone / "miniature" / "command.py").is_file():
        raise InputError(
            "the training recipes of the miniature's models are not part of the installed package; "
            "clone the repository and run this command from its environment"
        )
    # The current folder may be any other, and an editable install knows the package alone.
    sys.path.insert(0, str(clone))
    return importlib.import_module("miniature.command").miniature

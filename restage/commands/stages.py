"""Sub-commands that run stages: one for each, the demo that runs them all, and the models it starts from.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from restage.commands.arguments import ModelsArgument, RunArgument, RunSeedArgument
from restage.run.progress import show_progress

__all__ = ["build_demo", "build_miniature", "build_stage"]


def build_demo() -> Callable[..., None]:
    """Build `restage demo`."""

    def demo(*, out: Path = Path("runs/demo"), seed: int = 0, models: Path | None = None) -> None:
        """From prompts to the report page of an edited scene, in about ten minutes on two cores.

        Example: restage demo --out runs/demo

        Ctrl-C stops it at any time; the same command goes on from there. What is done is not done again.

        Args:
            out: Folder of the run.
            seed: Chooses prompts, pairs and noise.
            models: Folder with the models to start from; default: those that come with the package.
        """
        from restage.recipes import demo as run_demo
        from restage.recipes import demo_config
        from restage.run.models import models_in

        found = models_in(models)
        show_progress(run_demo(out, demo_config(found), found, seed=seed))
        print(f"page: {out / 'report' / 'index.html'}")

    return demo


def build_stage(stage: str, description: str) -> Callable[[], Callable[..., None]]:
    """A sub-command that runs one stage of a run, with the stage's config as its flags."""

    def build() -> Callable[..., None]:
        from restage.recipes import STAGES
        from restage.run.folder import open_run, working
        from restage.run.models import models_in

        config_type, run_stage = STAGES[stage]
        default = config_type()

        def command(
            run: Positional[RunArgument],
            *,
            config: Annotated[config_type, arg(name="")] = default,  # pyright: ignore
            models: ModelsArgument = None,
            run_seed: RunSeedArgument = 0,
        ) -> None:
            with working(open_run(run, seed=run_seed)) as opened:
                last = show_progress(run_stage(opened, config, models_in(models)))
            print(f"{stage}: {run / stage}" + (f", {last.note}" if last and last.done < last.total else ""))

        command.__doc__ = description
        return command

    return build


def build_miniature() -> Callable[..., None]:
    """Build `restage miniature`."""

    def miniature(
        action: Positional[Literal["train"]],
        part: Positional[Literal["pictures", "autoencoder", "text-to-image", "clip", "edit-model", "probe"]],
        *,
        folder: Path = Path("training"),
        num_pictures: int = 25_000,
        num_steps: int | None = None,
        compile: bool = False,
        start: Path | None = None,
        version: Literal["filtered", "unfiltered", "exact"] = "filtered",
        batch_size: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Make the models of the miniature world from nothing, one part after the other.

        Example: restage miniature train pictures; restage miniature train autoencoder

        Ctrl-C stops it at any time; the same command goes on from the last checkpoint. docs/miniature.md has the costs.

        Args:
            action: What to do.
            part: Which part; each needs those named before it.
            folder: Where pictures (`pictures/`) and models (`miniature/`) lie.
            num_pictures: Size of the training set.
            num_steps: Of training; default: the recipe's.
            compile: Compile the model first (needs a C++ compiler): some minutes, then faster steps.
            start: Folder of a text-to-image model from whose weights that of another, or of an autoencoder, goes on; of
                the latter the decoder alone is trained, so that models trained on its latents stay valid. For a probe
                or an edit model, the folder of another one.
            version: Pairs that the edit model is trained on: those that the rule accepts (the model that ships), all
                that were made, or rendered ones; the others go to `edit_model_unfiltered` and `edit_model_exact`.
            batch_size: Of training; default: the recipe's.
            seed: Of first weights, batches and noise; another one needs a folder of its own.
            device: Where to train, such as `cuda`.
        """
        from restage.recipes import train_miniature

        steps = train_miniature(
            part,
            folder,
            num_pictures=num_pictures,
            num_steps=num_steps,
            is_compiled=compile,
            start=start,
            version=version,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )
        show_progress(steps)

    return miniature

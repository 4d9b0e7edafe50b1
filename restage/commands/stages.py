"""Sub-commands that run stages: one for each, the demo of them all, the training of its models, studies, diagnoses.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import restage
from restage.records import InputError, Progress
from restage.run.environment import check_device
from restage.run.folder import hold_stages, open_run, working
from restage.run.layout import SCORES, check_is_run
from restage.run.models import models_in
from restage.run.progress import say, show_progress
from restage.work.task import EngineConfig

__all__ = ["DeviceArgument", "ModelsArgument", "RunArgument", "RunSeedArgument", "StoreArgument", "build_miniature"]
__all__ += ["build_stage", "build_train", "build_train_control", "demo", "diagnose", "study"]

RunArgument = Annotated[Path, arg(metavar="RUN", help="Folder of the run; it is made if it does not exist.")]
ModelsArgument = Annotated[
    Path | None, arg(metavar="FOLDER", help="Folder of the models to start from; default: the package's own.")
]
StoreArgument = Annotated[str, arg(metavar="URL")]
DeviceArgument = Annotated[
    str,
    arg(
        metavar="DEVICE",
        help="Where scenes are drawn and models compute: auto (a GPU if torch sees one and gsplat is installed), cpu, "
        "cuda, or cuda:N for GPU number N.",
    ),
]
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


def build_stage(stage: str, module: str, description: str) -> Callable[[], Callable[..., None]]:
    """Return the builder of a sub-command that runs one stage; its flags are the config in a module without torch."""

    def build() -> Callable[..., None]:
        config_type = getattr(importlib.import_module(module), f"{stage.capitalize()}Config")
        writes = ("world", "scenes") if stage == "world" else (stage,)
        default = config_type()

        def work(run: Path, config: Any, models: Path | None, run_seed: int, **how: Any) -> None:
            from restage.recipes import STAGES

            with working(open_run(run, seed=run_seed), *writes) as opened:
                last = show_progress(STAGES[stage].run(opened, config, models_in(models), **how))
            say(f"{stage}: {run / stage}" + (f", {last.note}" if last and last.done < last.total else ""))

        def command(
            run: Positional[RunArgument],
            *,
            config: Annotated[config_type, arg(name="")] = default,  # pyright: ignore
            models: ModelsArgument = None,
            run_seed: RunSeedArgument = 0,
        ) -> None:
            work(run, config, models, run_seed)

        def command_that_draws(
            run: Positional[RunArgument],
            *,
            config: Annotated[config_type, arg(name="")] = default,  # pyright: ignore
            device: DeviceArgument = "auto",
            models: ModelsArgument = None,
            run_seed: RunSeedArgument = 0,
        ) -> None:
            from restage.scenes.device import choose_device

            work(run, config, models, run_seed, device=choose_device(device))

        chosen = command_that_draws if stage in ("scenes", "compare") else command
        chosen.__doc__ = description
        return chosen

    return build


def build_train() -> Callable[..., None]:
    """Build `restage train`."""
    from restage.train.config import TrainConfig

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

        with working(open_run(run, seed=run_seed), "train") as opened:
            show_progress(run_train(opened, config, start=models_in(models).edit_model, store=store))
        say(f"train: {run / 'train'}")

    return train


def build_train_control() -> Callable[..., None]:
    """Build `restage train-control`."""
    from restage.diffusion.config import TrainingConfig
    from restage.train.config import BranchConfig

    def train_control(
        run: Positional[Annotated[Path, arg(metavar="RUN")]],
        *,
        condition: str,
        out: Path | None = None,
        caption: str = "",
        config: Annotated[BranchConfig, arg(name="")] = BranchConfig(),  # noqa: B008
        training: TrainingConfig = TrainingConfig(num_steps=2000, batch_size=16, learning_rate=1e-4),  # noqa: B008
        backbone: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Train a control branch on the pictures of a run, for restage generate --control and --like.

        Example: restage train-control runs/mine --condition depth --out models/mine-depth

        Ctrl-C stops it at any time; the same command goes on from the last checkpoint.

        Args:
            run: The run: views of its fitted scenes, or its pairs.
            condition: What the branch takes: depth (of the splats), ids (of the scene's regions), canny (edges of the
                pairs, or of the views), or a folder of pictures with the names of views or pairs.
            out: Folder of the branch; default: models/ and the names of run and condition.
            caption: What the views of its scenes show; by default what the scenes of the miniature world say of
                themselves, and nothing for others. Pairs have captions of their own.
            config: What the branch is.
            training: How long and how fast.
            backbone: Folder of the text-to-image model; default: the one that comes with the package.
            device: Where to train, such as `cuda`.
        """
        from restage.diffusion.backbone import load_backbone
        from restage.train.control import BranchData, check_training, train_branch
        from restage.train.control_data import RunPictures, encode_run

        check_is_run(run)
        check_device(device)
        check_training(training)
        pictures = RunPictures(run, condition, caption=caption)
        folder = out or Path("models") / f"{run.resolve().name}-{Path(condition).name}"
        model = load_backbone(backbone or models_in().text_to_image, device)

        def steps() -> Iterator[Progress]:
            for step in encode_run(model, pictures, config, training):
                if isinstance(step, BranchData):
                    where = {"state": folder / "state", "folder": folder}
                    yield from train_branch(model, step, config, training=training, **where)
                else:
                    yield step

        show_progress(steps())
        say(f"control branch: {folder}")

    return train_control


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


StudyArgument = Annotated[
    Path, arg(metavar="STUDY", help="A Python file with a STUDY, or the folder of a study that was begun.")
]
FirstArgument = Annotated[Path, arg(metavar="A", help="A run that is taken for good, or a JSON file of settings.")]
SecondArgument = Annotated[Path, arg(metavar="B", help="The run to explain, or a JSON file of settings.")]


def study(
    study: Positional[StudyArgument],
    *,
    out: Path | None = None,
    device: DeviceArgument = "auto",
    engine: Annotated[EngineConfig, arg(name="")] = EngineConfig(),  # noqa: B008
) -> None:
    """Compare methods on scenes, edits, editors and seeds that a Python file names; only what is missing runs.

    Example: restage study benchmarks/truth_study.py --out runs/truth --workers 2

    Ctrl-C stops it at any time, a machine may fail: the same command goes on from there, on any engine, and ends
    with the same numbers. With --engine ray all machines have to see the study's folder and the models that it
    names under the same paths. The folder is a run: restage report runs/truth

    Args:
        study: What to compare.
        out: Folder of the study; default: runs/ and the file's name.
        device: Where scenes are fitted and edited; with cuda each GPU of a machine has a worker of its own.
        engine: Where the study runs; each worker computes with one thread unless --threads says otherwise.
    """
    from restage.scenes.device import choose_device
    from restage.scores.rows import read_scores
    from restage.scores.tables import markdown_table, method_table
    from restage.studies.study import load_study
    from restage.studies.work import run_study

    if out is not None and study.is_dir():
        raise InputError(f"{study} is the folder of a study already; omit --out")
    folder = study if study.is_dir() else out or Path("runs") / study.stem
    file = study / "study.py" if study.is_dir() else study
    steps = run_study(load_study(file), folder, engine=engine, file=file, device=choose_device(device))
    show_progress(steps)
    say(markdown_table(method_table(read_scores(folder / SCORES))), end="")


def diagnose(
    a: Positional[FirstArgument],
    b: Positional[SecondArgument],
    *,
    method: str = "restage",
    cases: int = 6,
    time_budget: float = 900.0,
    min_effect: float = 0.03,
    out: Path | None = None,
    store: Annotated[tuple[str, ...], arg(metavar="URL...")] = (),
    models: ModelsArgument = None,
    seed: int = 0,
    device: DeviceArgument = "auto",
    engine: Annotated[EngineConfig, arg(name="")] = EngineConfig(),  # noqa: B008
) -> None:
    """Say why run B does worse (or better) than run A: which part costs how much, in a sentence, table and figure.

    Example: restage diagnose runs/good runs/bad

    Both runs are tried on the same edits with exact truth. Then one part at a time is exchanged, from B into A and
    from A into B: pairs, weights, guidance, masks, noise range, method, cameras, fit. Ctrl-C stops it at any
    time; the same command goes on from there, on any engine.

    Two JSON files of settings, such as {"edit.settings.restage.noise_levels": [0.35]}, are run small first.

    Args:
        a: The run to compare with.
        b: The run to explain.
        method: The method whose edits are explained.
        cases: Edits to try both runs on.
        time_budget: Seconds after which no further exchange is begun.
        min_effect: Progress below which a difference is of no interest.
        out: Where the answer goes; default: diagnose in B's folder.
        store: Where the pairs of A and of B lie, if not in the runs' folders; without it they are not looked at.
        models: Folder with the models that the runs' training started from; default: those of the package.
        seed: Seed of the edits' noise, the same for both runs.
        device: Where scenes are fitted and edited.
        engine: Where trials, trainings and fits are made.
    """
    from restage.diagnose.diagnosis import DiagnoseConfig
    from restage.diagnose.small import SmallConfig, changed, make_run, read_changes
    from restage.diagnose.stage import run_diagnose
    from restage.scenes.device import choose_device

    device = choose_device(device)
    config = DiagnoseConfig(method=method, max_cases=cases, time_budget_s=time_budget, min_effect=min_effect, seed=seed)
    found = models_in(models)
    runs = []
    for path in (a, b):
        if path.suffix == ".json":
            small = changed(SmallConfig(), read_changes(path))
            path = Path("runs") / path.stem
            show_progress(make_run(path, small, found, seed=seed))
        runs.append(path)
    check_is_run(runs[1])
    with hold_stages(runs[1], *(() if out else ("diagnose",))):
        where = {"out": out, "engine": engine, "device": device}
        steps = run_diagnose(runs[0], runs[1], config, models=found, stores=store, **where)
        last = show_progress(steps)
    say(f"{last.note if last else ''}\ntables and figure: {(out or runs[1] / 'diagnose') / 'diagnosis.md'}")

"""`restage diagnose`: says which part of run B makes it worse than run A.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from restage.run.progress import show_progress

__all__ = ["build_diagnose"]

FirstArgument = Annotated[Path, arg(metavar="A", help="A run that is taken for good, or a JSON file of settings.")]
SecondArgument = Annotated[Path, arg(metavar="B", help="The run to explain, or a JSON file of settings.")]


def build_diagnose() -> Callable[..., None]:
    """Build `restage diagnose`."""
    from restage.commands.arguments import ModelsArgument  # here, since the menu of commands imports this module
    from restage.work.interface import EngineConfig

    def diagnose(
        a: Positional[FirstArgument],
        b: Positional[SecondArgument],
        *,
        method: str = "restage",
        cases: int = 6,
        time_budget: float = 900.0,
        min_effect: float = 0.03,
        out: Path | None = None,
        models: ModelsArgument = None,
        seed: int = 0,
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
            models: Folder with the models that the runs' training started from; default: those of the package.
            seed: Seed of the edits' noise, the same for both runs.
            engine: Where trials, trainings and fits are made.
        """
        from restage.diagnose.diagnosis import DiagnoseConfig
        from restage.diagnose.small import SmallConfig, changed, make_run, read_changes
        from restage.diagnose.stage import run_diagnose
        from restage.run.models import models_in

        config = DiagnoseConfig(
            method=method, max_cases=cases, time_budget_s=time_budget, min_effect=min_effect, seed=seed
        )
        found = models_in(models)
        runs = []
        for path in (a, b):
            if path.suffix == ".json":
                small = changed(SmallConfig(), read_changes(path))
                path = Path("runs") / path.stem
                show_progress(make_run(path, small, found, seed=seed))
            runs.append(path)
        last = show_progress(run_diagnose(runs[0], runs[1], config, models=found, out=out, engine=engine))
        print(f"{last.note if last else ''}\ntables and figure: {(out or runs[1] / 'diagnose') / 'diagnosis.md'}")

    return diagnose

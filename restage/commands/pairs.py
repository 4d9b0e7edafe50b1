"""Sub-commands of image pairs: their prompts in rounds, making them, and taking those of others in.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from restage.commands.arguments import ModelsArgument, RunArgument, RunSeedArgument
from restage.records import InputError
from restage.run.progress import show_progress

__all__ = ["PROMPTS_HELP", "build_import", "build_pairs", "build_rounds"]

DataSetArgument = Annotated[Path, arg(metavar="DIR")]


PROMPTS_HELP = """Write prompt pairs: two captions that differ by one edit, and the instruction between them.

Example: restage prompts runs/mine --num-prompts 200

Without more, the grammar of the miniature world writes them, kinds of edit in turn.

A language model (pip install 'restage[llm]') writes for any model of pictures. Name it by OPENAI_BASE_URL,
OPENAI_API_KEY and RESTAGE_LLM_MODEL, or by flags; the key comes from the environment only. Every answer is kept in
prompts/llm: the same command after a kill pays for nothing twice. Where --llm.limits.max-cost stops it, the pairs so
far are in prompts.jsonl, and the same command with a higher limit goes on:

  restage prompts runs/mine --writer llm --llm.model NAME --llm.limits.input-price 0.15 --llm.limits.output-price 0.6
  --llm.limits.max-cost 2

Your own captions, one a line, become the source captions: --captions my.txt

Forms that learn: --learn-from runs/a runs/b chooses what to write by which pairs were accepted there. One pair in five
is drawn without regard to that, so that its yield stays unbiased. `restage rounds` does it in rounds.

Files: prompts.jsonl, rejects.jsonl (what was not kept, and why), forms.jsonl (what is known of each form)."""


def build_rounds() -> Callable[..., None]:
    """Build `restage rounds`."""
    from restage.pairs.stage import PairsConfig
    from restage.prompts.rounds import RoundsConfig
    from restage.recipes import PAIRS

    default = RoundsConfig()

    def rounds(
        run: Positional[RunArgument],
        *,
        config: Annotated[RoundsConfig, arg(name="")] = default,
        pairs: PairsConfig = PAIRS,
        models: ModelsArgument = None,
        run_seed: RunSeedArgument = 0,
    ) -> None:
        """Learn which prompt forms lead to accepted pairs, in rounds of: write prompts, make pairs, learn.

        Example: restage rounds runs/forms --num-rounds 5 --prompts.num-prompts 96

        A form is what is fixed before a prompt pair is written, such as kind=resize objects=1 size=small. Each has a
        Beta posterior on the acceptance of its pairs; forms are chosen by Thompson sampling within quotas of kinds, and
        the surest ones get children with one more thing fixed. A control slice of each round is drawn evenly from the
        original forms, whatever was learned: the yield beside it says what learning is worth.

        Each round is a run in RUN/rounds. To write in bulk with what was learned:
        restage prompts runs/big --num-prompts 20000 --learn-from runs/forms/rounds/*
        """
        from restage.recipes import learn_forms
        from restage.run.models import models_in

        last = show_progress(learn_forms(run, config, pairs, models_in(models), seed=run_seed))
        print(f"rounds: {run / 'rounds'}  {last.note if last else ''}")

    return rounds


def build_pairs() -> Callable[..., None]:
    """Build `restage pairs`."""
    from restage.pairs.campaign import CampaignConfig
    from restage.pairs.stage import PairsConfig

    def pairs(
        run: Positional[RunArgument],
        *,
        config: Annotated[PairsConfig, arg(name="")] = PairsConfig(),  # noqa: B008
        engine: Annotated[CampaignConfig, arg(name="")] = CampaignConfig(),  # noqa: B008
        store: Annotated[str, arg(metavar="URL")] = "",
        rejudge: bool = False,
        models: ModelsArgument = None,
        run_seed: RunSeedArgument = 0,
    ) -> None:
        """Make image pairs of the run's prompt pairs with Prompt-to-Prompt; score them, keep or reject them.

        Example: restage pairs runs/mine --engine local --workers 2

        Ctrl-C or SIGTERM stops it, a machine may fail: the same command goes on from there, on any engine.

        Args:
            run: Folder of the run.
            config: How pairs are made and judged.
            engine: Where they are made.
            store: Where shards go, such as s3://bucket/run; default: the run's folder.
            rejudge: Judge the pairs that are there by the rule given now; only what needs it is made again.
            models: Models to start from.
            run_seed: Of the run.
        """
        from restage.recipes import make_pairs
        from restage.run.folder import open_run, working
        from restage.run.models import models_in

        with working(open_run(run, seed=run_seed)) as opened:
            found = models_in(models)
            show_progress(make_pairs(opened, config, found, engine=engine, store=store, is_rejudging=rejudge))
        print(f"pairs: {run / 'pairs'}")

    return pairs


def build_import() -> Callable[..., None]:
    """Build `restage import`."""
    from restage.pairs.exchange.bring_in import ImportConfig

    default = ImportConfig()

    def import_(
        folder: Positional[DataSetArgument],
        *,
        out: Path,
        config: Annotated[ImportConfig, arg(name="")] = default,
    ) -> None:
        """Take image pairs of somebody else in, for `restage train`; bad ones are listed with the reason.

        Example: restage import path/to/dataset --format hf --out runs/theirs

        Args:
            folder: Folder of the data set.
            out: Folder of the run; made if it is missing.
            config: How to take them in.
        """
        from restage.pairs.exchange.bring_in import import_folder
        from restage.run.folder import open_run, working

        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; expected the folder of a data set")
        with working(open_run(out)) as run:
            last = show_progress(import_folder(run, folder, config))
        print(f"pairs: {out / 'pairs'}" + (f" ({last.note})" if last else ""))

    return import_

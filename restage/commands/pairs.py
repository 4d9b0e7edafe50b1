"""Sub-commands of image pairs: writing their prompts in rounds, making them, and importing those of others.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from restage.commands.stages import ModelsArgument, RunArgument, RunSeedArgument, StoreArgument
from restage.records import InputError
from restage.run.folder import open_run, working
from restage.run.models import CLIP_RULE, models_in
from restage.run.progress import say, show_progress

__all__ = ["PROMPTS_HELP", "build_calibrate", "build_import", "build_pairs", "build_rounds"]

ClipArgument = Annotated[Path, arg(metavar="CLIP")]
DataSetArgument = Annotated[Path, arg(metavar="DIR")]


PROMPTS_HELP = """Write prompt pairs: two captions that differ by one edit, and the instruction between them.

Example: restage prompts runs/mine --num-prompts 200

By default the grammar of the miniature world writes them, one kind of edit after the other.

A language model (pip install 'restage[llm]') writes prompts for any image model. Name it by OPENAI_BASE_URL,
OPENAI_API_KEY and RESTAGE_LLM_MODEL, or by flags; the key is read from the environment only. Every answer is kept in
prompts/llm, so the same command after a kill pays for nothing twice. If --llm.limits.max-cost stops it, the pairs so
far are in prompts.jsonl, and the same command with a higher limit goes on:

  restage prompts runs/mine --writer llm --llm.model NAME --llm.limits.input-price 0.15 --llm.limits.output-price 0.6
  --llm.limits.max-cost 2

To use your own source captions, one on each line: --captions my.txt

--learn-from runs/a runs/b writes more of what was accepted there. One pair in five is drawn without regard to that, so
that its yield stays unbiased. `restage rounds` repeats this in rounds.

Files: prompts.jsonl, rejects.jsonl (what was not kept, and why), forms.jsonl (what is known about each form)."""


def build_rounds() -> Callable[..., None]:
    """Build `restage rounds`."""
    from restage.pairs.config import PAIRS, PairsConfig
    from restage.prompts.config import RoundsConfig

    def rounds(
        run: Positional[RunArgument],
        *,
        config: Annotated[RoundsConfig, arg(name="")] = RoundsConfig(),  # noqa: B008
        pairs: PairsConfig = PAIRS,
        models: ModelsArgument = None,
        run_seed: RunSeedArgument = 0,
    ) -> None:
        """Learn which prompt forms lead to accepted pairs, in rounds of: write prompts, make pairs, learn.

        Example: restage rounds runs/forms --num-rounds 5 --prompts.num-prompts 96

        A form is what is fixed before a prompt pair is written, such as kind=resize objects=1 size=small. Each has a
        Beta posterior on the acceptance of its pairs; forms are chosen by Thompson sampling within quotas of kinds, and
        the surest ones get children with one more thing fixed. A control slice of each round is drawn evenly from the
        original forms, whatever was learned; comparing its yield with the rest shows what learning is worth.

        Each round is a run in RUN/rounds. To write in bulk with what was learned:
        restage prompts runs/big --num-prompts 20000 --learn-from runs/forms/rounds/*
        """
        from restage.recipes import learn_forms

        last = show_progress(learn_forms(run, config, pairs, models_in(models), seed=run_seed))
        say(f"rounds: {run / 'rounds'}  {last.note if last else ''}")

    return rounds


def build_pairs() -> Callable[..., None]:
    """Build `restage pairs`."""
    from restage.pairs.config import CampaignConfig, PairsConfig

    def pairs(
        run: Positional[RunArgument],
        *,
        config: Annotated[PairsConfig, arg(name="")] = PairsConfig(),  # noqa: B008
        engine: Annotated[CampaignConfig, arg(name="")] = CampaignConfig(),  # noqa: B008
        store: StoreArgument = "",
        rejudge: bool = False,
        control: tuple[Literal["depth", "ids", "canny"], ...] = (),
        branch: tuple[str, ...] = (),
        depth_model: Path | None = None,
        ids_model: Path | None = None,
        models: ModelsArgument = None,
        run_seed: RunSeedArgument = 0,
    ) -> None:
        """Make an image pair for each prompt pair of the run with Prompt-to-Prompt; score it, keep or reject it.

        Example: restage pairs runs/mine --engine local --workers 2

        If Ctrl-C, SIGTERM or a broken machine stops it, the same command goes on from there, on any engine.

        Args:
            run: Folder of the run.
            config: How pairs are made and judged.
            engine: Where pairs are made.
            store: Where shards lie, such as s3://bucket/run; default: the run's folder. A run that began in a store
                needs it named each time.
            rejudge: Judge the existing pairs by the rule given now; only what needs it is made again.
            control: What of the source holds the layout of both pictures: depth, which --depth-model reads, ids (what
                is one thing), which --ids-model does, canny, its edges, or several of them.
            branch: Control branches for that, each as FOLDER, or NAME=FOLDER for a ControlNet of diffusers, such as
                depth=path/to/controlnet; default: the one that comes with the model.
            depth_model: Folder of a DPT or Depth Anything of transformers.
            ids_model: Folder of a Mask2Former, MaskFormer or SegFormer of transformers.
            models: Folder of the models to start from.
            run_seed: Seed for a new run.
        """
        from restage.recipes import make_pairs

        if control or branch or depth_model or ids_model:
            readers = {"depth_model": depth_model, "ids_model": ids_model}
            held = replace(config.generate, held_by=control, branch=branch, **readers)
            config = replace(config, generate=held)
        with working(open_run(run, seed=run_seed), "pairs") as opened:
            found = models_in(models)
            show_progress(make_pairs(opened, config, found, engine=engine, store=store, is_rejudging=rejudge))
        say(f"pairs: {run / 'pairs'}")

    return pairs


def build_calibrate() -> Callable[..., None]:
    """Build `restage calibrate`."""

    def calibrate(
        clip: Positional[ClipArgument],
        *,
        run: Path | None = None,
        store: StoreArgument = "",
        num_pairs: int = 140,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Measure which thresholds on its scores suit a CLIP, and write them into its folder.

        Example: restage calibrate models/clip --run runs/theirs

        `restage pairs` and the demo accept by the thresholds in the folder of the CLIP that they score with. They are
        set so that each keeps 98 % of pairs that are right. Measure a CLIP for photographs on pairs of photographs.

        Args:
            clip: Folder of a CLIP, as transformers saves it.
            run: Run whose accepted pairs are known to be right, such as an imported data set; by default, exact pairs
                of the miniature world are rendered.
            store: Where that run's pairs lie, if not in its folder.
            num_pairs: Number of pairs to render.
            seed: Seed of the pairs that are rendered.
            device: Device for the CLIP, such as `cuda`.
        """
        from restage.diffusion.clip import load_clip
        from restage.pairs.clip_rule import calibrate_folder, exact_pairs
        from restage.pairs.files import open_files
        from restage.pairs.store import read_pairs

        given = None if run is None else open_files(run / "pairs", store=store)
        pairs = exact_pairs(num_pairs, seed=seed) if given is None else read_pairs(given)
        made_from = f"{num_pairs} rendered pairs of seed {seed}" if run is None else run.name
        found = calibrate_folder(clip, load_clip(clip, device), pairs, made_from=made_from)
        rule, kept, wrong = found.rule, found.kept, found.kept_of_wrong
        values = (rule.min_image_similarity, rule.min_direction_similarity, rule.min_text_similarity)
        say("thresholds: pictures {:g}, direction {:g}, texts {:g}".format(*values))
        say(f"accepted: {kept:.0%} of {found.num_pairs} right pairs, {wrong:.0%} with a picture of another pair")
        say(f"written: {clip / CLIP_RULE}")

    return calibrate


def build_import() -> Callable[..., None]:
    """Build `restage import`."""
    from restage.pairs.config import ImportConfig

    def import_(
        folder: Positional[DataSetArgument],
        *,
        out: Path,
        config: Annotated[ImportConfig, arg(name="")] = ImportConfig(),  # noqa: B008
    ) -> None:
        """Import somebody else's image pairs for `restage train`; bad ones are listed with the reason.

        Example: restage import path/to/dataset --format hf --out runs/theirs

        Args:
            folder: Folder of the data set.
            out: Folder of the run; it is made if it does not exist.
            config: How to read them.
        """
        from restage.pairs.exchange.bring_in import import_folder

        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}; expected the folder of a data set")
        with working(open_run(out), "pairs") as run:
            last = show_progress(import_folder(run, folder, config))
        say(f"pairs: {out / 'pairs'}" + (f" ({last.note})" if last else ""))

    return import_

"""The sub-commands of `restage`: each is a function whose arguments tyro turns into flags.

Called by `cli.py`. Whatever is heavy (torch, diffusers) is imported only when a sub-command is built or run, and
annotations are evaluated then too: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from restage.records import EditRequest, InputError
from restage.show import describe_run, list_runs, show_progress

__all__ = ["COMMANDS"]

RunArgument = Annotated[Path, arg(metavar="RUN", help="Folder of the run; made if it is missing.")]
ModelsArgument = Annotated[
    Path | None, arg(metavar="FOLDER", help="Models to start from; default: those that come with the package.")
]
RunSeedArgument = Annotated[int, arg(help="Of the run, if this makes it; a run keeps the seed it has.")]
SceneArgument = Annotated[Path, arg(metavar="SCENE")]
CaptureArgument = Annotated[Path, arg(metavar="CAPTURE")]
ShownArgument = Annotated[
    Path, arg(metavar="PATH", help="A run, a fitted scene, a capture with a fit, or splats as PLY (3DGS layout).")
]
ExportedArgument = Annotated[str, arg(metavar="PATH")]
TargetArgument = Annotated[Path | None, arg(metavar="OUT")]
DataSetArgument = Annotated[Path, arg(metavar="DIR")]
VerifiedArgument = Annotated[str, arg(metavar="PATH", help="A run, or a folder or URL of shards of image pairs.")]
InstructionArgument = Annotated[str, arg(metavar="INSTRUCTION")]


def _demo() -> Callable[..., None]:
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
        from restage.recipes import demo_config, models_in

        found = models_in(models)
        show_progress(run_demo(out, demo_config(found), found, seed=seed))
        print(f"page: {out / 'report' / 'index.html'}")

    return demo


def _stage(stage: str, description: str) -> Callable[[], Callable[..., None]]:
    """A sub-command that runs one stage of a run, with the stage's config as its flags."""

    def build() -> Callable[..., None]:
        from restage.recipes import STAGES, models_in, open_run, working

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


def _rounds() -> Callable[..., None]:
    from restage.miniature.edit_model import PAIRS
    from restage.pairs.stage import PairsConfig
    from restage.prompts.rounds import RoundsConfig

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
        from restage.recipes import learn_forms, models_in

        last = show_progress(learn_forms(run, config, pairs, models_in(models), seed=run_seed))
        print(f"rounds: {run / 'rounds'}  {last.note if last else ''}")

    return rounds


def _pairs() -> Callable[..., None]:
    from restage.pairs.executors.interface import EngineConfig
    from restage.pairs.stage import PairsConfig

    def pairs(
        run: Positional[RunArgument],
        *,
        config: Annotated[PairsConfig, arg(name="")] = PairsConfig(),  # noqa: B008
        engine: Annotated[EngineConfig, arg(name="")] = EngineConfig(),  # noqa: B008
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
        from restage.recipes import make_pairs, models_in, open_run, working

        with working(open_run(run, seed=run_seed)) as opened:
            found = models_in(models)
            show_progress(make_pairs(opened, config, found, engine=engine, store=store, is_rejudging=rejudge))
        print(f"pairs: {run / 'pairs'}")

    return pairs


def _fit() -> Callable[..., None]:
    from restage.scenes.fit import PHOTOGRAPHS, FitConfig

    def fit(
        capture: Positional[CaptureArgument],
        *,
        size: int | None = None,
        out: Path | None = None,
        config: Annotated[FitConfig, arg(name="")] = PHOTOGRAPHS,
    ) -> None:
        """Fit Gaussian splats to a capture and say how well held-out views come out.

        Example: restage fit path/to/capture --size 160 --out runs/mine

        Args:
            capture: A nerfstudio folder, a COLMAP project, or a folder of photographs (needs restage[colmap]).
            size: Longer side of the views in pixels; default: as they are.
            out: Folder of the run; default: runs/ and the capture's name.
            config: How to fit.
        """
        from restage.recipes import fit_folder
        from restage.scenes.io import capture_name

        out = out or Path("runs") / capture_name(capture)
        show_progress(fit_folder(capture, out, config, size=size))
        print("\n".join(describe_run(out)))

    return fit


def _edit() -> Callable[..., None]:
    def edit(
        scene: Positional[SceneArgument],
        instruction: Positional[InstructionArgument],
        *,
        method: str = "restage",
        editor: str = "edit_model",
        source_caption: str = "",
        target_caption: str = "",
        model: Path | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Edit a scene by an instruction.

        Example: restage edit runs/mine "make the cube blue" --method restage

        Args:
            scene: The run folder of a fitted scene, or a capture, which is then fitted first.
            instruction: What to change.
            method: One of the menu in `restage/edit`.
            editor: One of the menu in `restage/edit/editors`.
            source_caption: What is to be seen before; some editors make use of it.
            target_caption: What is to be seen after.
            model: Folder of the edit model; default: the one that comes with the package.
            size: Longer side of the views in pixels, if a capture is fitted first.
            seed: Of the edit's noise.
        """
        from restage.recipes import EditChoice, edit_folder, fit_folder
        from restage.scenes.fit import PHOTOGRAPHS
        from restage.scenes.io import capture_name, is_capture

        request = EditRequest(instruction=instruction, source_caption=source_caption, target_caption=target_caption)
        choice = EditChoice(method=method, editor=editor, model=model, seed=seed)
        if is_capture(scene):
            out = Path("runs") / capture_name(scene)
            show_progress(fit_folder(scene, out, PHOTOGRAPHS, size=size))
            scene = out
        last = show_progress(edit_folder(scene, request, choice))
        print(f"edited: {last.note if last else scene}")

    return edit


def _export() -> Callable[..., None]:
    from restage.scenes.turning import Frame, export_splats

    def export(
        path: Positional[ExportedArgument],
        target: Positional[TargetArgument] = None,
        *,
        format: Literal["ply", "hf", "webdataset", "instruct-pix2pix"] = "ply",
        out: Path | None = None,
        frame: Frame = "own",
    ) -> None:
        """Write a scene's splats as PLY, or a run's accepted image pairs in a form that others read.

        Example: restage export runs/mine mine.ply; restage export runs/mine --format hf --out mine_pairs

        Pairs come with a data card; the folder appears when all of it is there, and a stopped export goes on.

        Args:
            path: A run with one fitted scene, `<run>/scenes/<scene>`, the folder of an edit; for pairs, a run.
            target: What to write: a PLY, or a folder.
            format: Splats as PLY; or pairs for Hugging Face's load_dataset, WebDataset, InstructPix2Pix's loader.
            out: The same as OUT.
            frame: Of splats: the capture's own, which its cameras fit, or upright as in the run, z up.
        """
        place = target or out
        if place is None or (target and out):
            raise InputError("name what to write, once: restage export PATH OUT, or --out OUT")
        if format == "ply":
            from restage.recipes import find_scene

            print(f"{export_splats(find_scene(Path(path)), place, frame=frame)} splats: {place}")
        else:
            from restage.exchange import export_pairs

            show_progress(export_pairs(path, place, format))
            print(f"{format}: {place}")

    return export


def _import() -> Callable[..., None]:
    from restage.exchange import ImportConfig

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
        from restage.exchange import import_folder
        from restage.recipes import open_run, working

        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; expected the folder of a data set")
        with working(open_run(out)) as run:
            last = show_progress(import_folder(run, folder, config))
        print(f"pairs: {out / 'pairs'}" + (f" ({last.note})" if last else ""))

    return import_


def _miniature() -> Callable[..., None]:
    def miniature(
        action: Positional[Literal["train"]],
        part: Positional[Literal["pictures", "autoencoder", "text-to-image", "clip", "edit-model", "probe"]],
        *,
        folder: Path = Path("training"),
        num_pictures: int = 25_000,
        num_steps: int | None = None,
    ) -> None:
        """Make the models of the miniature world from nothing, one part after the other.

        Example: restage miniature train pictures; restage miniature train autoencoder

        Ctrl-C stops it at any time; the same command goes on from the last checkpoint. docs/log.md has the costs.

        Args:
            action: What to do.
            part: Which part; each needs those named before it.
            folder: Where pictures (`pictures/`) and models (`miniature/`) lie.
            num_pictures: Size of the training set.
            num_steps: Of training; default: the recipe's.
        """
        from restage.recipes import train_miniature

        show_progress(train_miniature(part, folder, num_pictures=num_pictures, num_steps=num_steps))

    return miniature


def _show() -> Callable[..., None]:
    def show(run: Positional[RunArgument]) -> None:
        """Print what a run holds: its stages with their facts, its edits, its page.

        Example: restage show runs/demo
        """
        print("\n".join(describe_run(run)))

    return show


def _ls() -> Callable[..., None]:
    def ls(folder: Positional[Path] = Path("runs")) -> None:
        """List the runs in a folder: where, status, time, stages done.

        Example: restage ls runs

        Args:
            folder: Where the runs are.
        """
        print("\n".join(list_runs(folder)) or f"no runs in {folder}")

    return ls


def _view() -> Callable[..., None]:
    def view(path: Positional[ShownArgument], *, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Show scenes in the browser; type edits there and watch them happen. Ctrl-C ends it.

        Example: restage view runs/demo

        Args:
            path: What to show.
            host: Address to listen on. Anything but this machine's own lets others see and edit.
            port: Port to listen on; the next free one if it is taken.
        """
        from restage.view.serve import serve

        serve(path, host=host, port=port)

    return view


def _doctor() -> Callable[..., None]:
    def doctor(*, runs: Path = Path("runs"), online: bool = False, json: bool = False) -> None:
        """Say what this machine can do, what is missing, and what to do about it. It changes nothing.

        Example: restage doctor

        The exit code is 1 if something that is needed is broken.

        Args:
            runs: Folder that runs go to.
            online: Also ask whether the model hub answers; else the network is not touched.
            json: Print JSON instead of a table.
        """
        from restage import doctor as checks

        findings = list(checks.examine(runs=runs, is_online=online))
        if json:
            print(checks.to_json(findings))
        else:
            checks.show_table(findings)
        if not checks.is_healthy(findings):
            raise SystemExit(1)

    return doctor


def _verify() -> Callable[..., None]:
    from restage.verify import VerifyConfig, verify_folder

    default = VerifyConfig()

    def verify(
        path: Positional[VerifiedArgument],
        *,
        config: Annotated[VerifyConfig, arg(name="")] = default,
        repair: bool = False,
        json: bool = False,
        sheets: Path | None = None,
        models: ModelsArgument = None,
    ) -> None:
        """Check that a run holds what was written, and that its pictures show what they are said to show.

        Example: restage verify runs/demo

        The exit code is 1 if anything was found. Nothing is changed, but for contact sheets, unless --repair is given.

        Args:
            path: What to check.
            config: What to look at.
            repair: Take out exactly what is bad: bad shards are made again by the command that made them, bad single
                pairs are left out by readers from now on. Nothing is deleted; it moves to a folder `quarantine`.
            json: Print JSON instead of lines.
            sheets: Folder for a contact sheet of each reason; default: `verify` in the run.
            models: Folder with the CLIP to judge captions with; default: the one that comes with the package.
        """
        if verify_folder(path, config, models=models, repairs=repair, is_json=json, sheets=sheets):
            raise SystemExit(1)

    return verify


COMMANDS: dict[str, Callable[[], Callable[..., None]]] = {
    "demo": _demo,
    "prompts": _stage("prompts", PROMPTS_HELP),
    "rounds": _rounds,
    "pairs": _pairs,
    "world": _stage(
        "world",
        "Make scenes of the miniature world: captures, and the exact truth of edits.\n\n"
        "Example: restage world runs/mine --edit-kinds recolour time",
    ),
    "train": _stage(
        "train",
        "Train the edit model on the run's kept pairs.\n\nExample: restage train runs/mine --training.num-steps 200",
    ),
    "fit": _fit,
    "edit": _edit,
    "export": _export,
    "import": _import,
    "scenes": _stage("scenes", "Fit every capture of the run.\n\nExample: restage scenes runs/mine"),
    "compare": _stage(
        "compare", "Score every edit of the run on held-out views.\n\nExample: restage compare runs/mine"
    ),
    "report": _stage("report", "Write the run's page, which opens from disk.\n\nExample: restage report runs/mine"),
    "miniature": _miniature,
    "view": _view,
    "show": _show,
    "ls": _ls,
    "verify": _verify,
    "doctor": _doctor,
}

"""Sub-commands about finished work: what a run holds, whether it still holds it, and what this machine can do.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from restage.audit.bundle import BundleConfig, pack_bundle
from restage.audit.listing import RunFilter, list_runs, run_line
from restage.audit.next_steps import describe_steps, next_steps, steps_of_run
from restage.audit.show import describe_profile, describe_run, profile_to_plain, run_to_plain
from restage.commands.stages import DeviceArgument, ModelsArgument, RunArgument, StoreArgument
from restage.records import InputError, MissingExtra, to_plain
from restage.run.folder import open_run, working
from restage.run.progress import say, show_progress

__all__ = ["bundle", "diff", "doctor", "ls", "build_report", "rerun", "show", "track", "build_verify"]

VerifiedArgument = Annotated[
    str, arg(metavar="PATH", help="A run, a bundle of one, or a folder or URL of shards of image pairs.")
]


def show(run: Positional[RunArgument], *, row: int | None = None, profile: bool = False, json: bool = False) -> None:
    """Print what a run holds: its stages with their facts, its edits, its table of methods, its page.

    Example: restage show runs/demo; restage show runs/demo --row 40; restage show runs/demo --profile

    Args:
        run: The run.
        profile: Print instead where the time went: seconds of each stage and of its parts, and how long threads waited
            for a free core. What worker processes did is not among them.
        row: Print instead where this number comes from: a row of compare/scores.parquet, as named on the page.
        json: Print JSON instead of lines, with every record as it is.
    """
    if json:
        if row is not None:
            raise InputError("--row is told in lines alone; --json has all rows, under `scores`")
        say(dumps(profile_to_plain(run) if profile else run_to_plain(run), allow_nan=False))
    elif profile:
        say("\n".join(describe_profile(run)))
    elif row is None:
        say("\n".join([*describe_run(run), "next:", *describe_steps(list(steps_of_run(run)))]))
    else:
        from restage.report.trace import describe_row

        say("\n".join(describe_row(run, row)))


def ls(
    folder: Positional[Path] = Path("runs"),
    *,
    all: bool = False,
    wanted: Annotated[RunFilter, arg(name="")] = RunFilter(),  # noqa: B008
    index: Path | None = None,
    json: bool = False,
) -> None:
    """List the runs in a folder: path, status, time, stages, who made it, when, from which commit.

    Example: restage ls runs; restage ls --all /shared/runs --user kim --since 2026-11-01 --index runs.html

    Args:
        folder: Where the runs are: this folder, or up to two levels below.
        all: Look for runs at any depth.
        wanted: Which runs.
        index: Write a page of these runs: a picture of each, scores, who, when, from which code. It is one file that
            opens from disk.
        json: Print JSON instead of lines.
    """
    runs = list_runs(folder, wanted=wanted, is_deep=all, with_results=json or index is not None)
    if index is not None:
        from restage.audit.run_index import write_index

        show_progress(write_index(runs, index))
        say(f"index: {index} ({len(runs)} runs)")
    elif json:
        plain = [{**to_plain(run), "is_dirty": run.is_dirty} for run in runs]
        say(dumps([{name: value for name, value in run.items() if name != "problem" or value} for run in plain]))
    else:
        say(
            "\n".join(map(run_line, runs)) or f"no runs in {folder}" + (" that are so" if wanted != RunFilter() else "")
        )


def build_verify() -> Callable[..., None]:
    """Build `restage verify`."""
    from restage.pairs.config import VerifyConfig

    def verify(
        path: Positional[VerifiedArgument],
        *,
        config: Annotated[VerifyConfig, arg(name="")] = VerifyConfig(),  # noqa: B008
        repair: bool = False,
        json: bool = False,
        sheets: Path | None = None,
        store: StoreArgument = "",
        models: ModelsArgument = None,
        device: DeviceArgument = "cpu",
    ) -> None:
        """Check that a run is as it was written, and that its numbers and pictures are what it says they are.

        Example: restage verify runs/demo; restage verify bundle.zip

        Every record and file that a stage sealed when it ended is compared with its hash, ids with their configs,
        captures with what was fitted; numbers of the table are measured again from the stored pictures; pairs are
        checked one by one. --fast skips what needs pictures.

        The exit code is 1 if anything was found. Nothing but contact sheets is written unless --repair is given.

        Args:
            path: What to check.
            config: What to look at.
            repair: Take out exactly what is bad among the pairs: bad shards can then be made again by the command that
                made them, and readers skip bad single pairs from now on. Nothing is deleted; it moves to a folder
                `quarantine`.
            json: Print JSON instead of lines.
            sheets: Folder for a contact sheet of each reason; default: `verify` in the run's folder.
            store: Where the run's pairs lie, if not in its folder; what the run itself says of it is not trusted.
            models: Folder of the models whose CLIP judges captions; default: the ones that come with the package.
            device: Where the unedited scene is drawn again: cuda for a table that was measured there.
        """
        from restage.audit.verify import verify_folder
        from restage.scenes.device import choose_device

        how = {"models": models, "repairs": repair, "is_json": json, "sheets": sheets}
        if verify_folder(path, config, store=store, device=choose_device(device), **how):
            raise SystemExit(1)

    return verify


def build_report() -> Callable[..., None]:
    """Build `restage report`."""
    from restage.report.read import ReportConfig

    def report(
        runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...", help="Folders of runs or studies.")]],
        *,
        config: Annotated[ReportConfig, arg(name="")] = ReportConfig(),  # noqa: B008
        out: Path | None = None,
        paper: Path | None = None,
    ) -> None:
        """Write the page of a run, which opens from disk, and what a paper needs.

        Example: restage report runs/mine --formats latex website --paper paper.toml

        Files: RUN/report/index.html, paper/paper.tex, slides.pptx, website/index.html, poster.pdf, poster.png,
        teaser.mp4, supplement.zip.

        Args:
            runs: What to show.
            config: How it is made.
            out: With several runs and --formats zip, the zip of all of them; default: supplement.zip beside them.
            paper: Texts of the website: a .toml, .yaml or .cff file with title, authors, abstract, url,
                repository-code, links, venue, year, method-figure, method-caption, bibtex.
        """
        from restage.run.layout import PAGE, check_is_run

        if not runs:
            raise InputError("name at least one run, such as: restage report runs/demo")
        for run in runs:
            check_is_run(run)
        if "slides" in config.formats and find_spec("pptx") is None:  # before a page is written, and the run has failed
            raise MissingExtra("python-pptx", "slides")
        from restage.report.paper import read_paper
        from restage.report.stage import run_report, write_supplement

        texts = read_paper(paper) if paper is not None else None
        for run in runs:
            with working(open_run(run), "report") as opened:
                show_progress(run_report(opened, config, texts))
            say(f"report: {run / PAGE}")
        if len(runs) > 1 and "zip" in config.formats:
            say(f"all of them: {write_supplement(runs, out or runs[0].parent / 'supplement.zip')}")

    return report


def bundle(
    run: Positional[RunArgument],
    *,
    out: Annotated[Path, arg(aliases=("-o",))],
    config: Annotated[BundleConfig, arg(name="")] = BundleConfig(),  # noqa: B008
) -> None:
    """Pack a run into one file that someone else can check with `restage verify`.

    Example: restage bundle runs/demo -o demo.zip

    Publish the hash that is printed at the end separately from the file, for example in the paper: then nobody can
    put another bundle in its place.

    Args:
        run: The run.
        out: The zip to write.
        config: What goes into it.
    """
    last = show_progress(pack_bundle(run, out, config))
    say(f"bundle: {out} ({last.note if last else ''})")


def track(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...", help="Folders of runs.")]],
    *,
    to: tuple[Literal["mlflow", "trackio"], ...],
    project: str = "restage",
    where: str = "",
) -> None:
    """Send the records of runs to a tracker: settings, training curves, scores. Each run is sent once.

    Example: restage track runs/a runs/b --to trackio

    Needs pip install 'restage[trackers]'. A run that has grown since gets another row only if its id has changed.

    Args:
        runs: Folders of runs.
        to: Which trackers.
        project: Name of the project or experiment.
        where: Tracking URI of MLflow, or URL of a trackio server; default: the one that the package itself uses.
    """
    from restage.audit.trackers import SINKS, facts_of

    for facts in map(facts_of, runs):
        for name in to:
            say(f"{name}: {SINKS[name](facts, project=project, where=where)}")


def diff(first: Positional[Path], second: Positional[Path], *, json: bool = False, latex: Path | None = None) -> None:
    """Print what differs between two runs: config, versions, data, weights, scores.

    Example: restage diff runs/a runs/b; restage diff runs/a runs/b --latex rebuttal.tex

    Scores are compared result by result where both runs have them, with confidence intervals clustered by scene.

    Args:
        first: Folder of a run.
        second: Folder of another run.
        json: Print JSON instead of lines.
        latex: Also write a table for a rebuttal to this file: each method before and after, with differences and
            intervals.
    """
    from restage.audit.show import compare_runs, describe_difference, difference_to_plain

    if latex is not None:
        from restage.report.rebuttal import write_rebuttal

        write_rebuttal(first, second, latex)
    found = compare_runs(first, second)
    say(difference_to_plain(found) if json else "\n".join(describe_difference(found)))


def rerun(run: Positional[RunArgument], *, out: Annotated[Path, arg(aliases=("-o",))]) -> None:
    """Make a run again in another folder, by the commands that made it, and print what differs.

    Example: restage rerun runs/mine --out runs/again

    Every command of a session that ended well is given again, with the new folder in place of the run's. Start it where
    the run was made: other paths in the commands stay as they are. What was done in the viewer is not among them. The
    exit code is 1 if data, weights or scores differ.

    Args:
        run: The run.
        out: Folder for the new one.
    """
    from restage.audit.rerun import comes_out_alike, differing_results
    from restage.audit.rerun import rerun as repeat
    from restage.audit.show import compare_runs, describe_difference

    for line in repeat(run, out):
        say(line)
    found = compare_runs(run, out)
    differing = differing_results(run, out)
    say("\n".join([*describe_difference(found), f"edited splats: {len(differing)} differ", *differing]))
    if not comes_out_alike(found, differing):
        raise SystemExit(1)


def doctor(*, runs: Path = Path("runs"), online: bool = False, start: bool = False, json: bool = False) -> None:
    """Say what this machine can do, what is missing, and what to do about it. It changes nothing.

    Example: restage doctor

    The exit code is 1 if something that is needed is broken.

    Args:
        runs: Folder that runs go to.
        start: Also start torch and numba, which takes some seconds and shows whether they do.
        online: Also ask whether the model hub answers; otherwise the network is not used.
        json: Print JSON instead of a table.
    """
    from restage import doctor as checks

    findings = list(checks.examine(runs=runs, is_online=online, starts=start))
    if json:
        say(checks.to_json(findings))
    else:
        checks.show_table(findings)
        steps = [step for step in next_steps(runs) if step.command != "restage doctor"]
        say("\n".join(["next:", *describe_steps(steps)]))
    if not checks.is_healthy(findings):
        raise SystemExit(1)

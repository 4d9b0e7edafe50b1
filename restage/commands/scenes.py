"""Sub-commands of scenes: fit, edit, view, export.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from restage.audit.show import describe_run
from restage.commands.clips import edit_a_clip
from restage.commands.stages import DeviceArgument, RunArgument, StoreArgument
from restage.records import EditRequest, InputError
from restage.run.endpoint_config import EndpointConfig
from restage.run.environment import check_device
from restage.run.folder import open_run, working
from restage.run.progress import say, show_progress, show_result

__all__ = ["edit", "build_edits", "export", "build_fit", "build_serve", "view"]

SceneArgument = Annotated[Path, arg(metavar="SCENE")]
CaptureArgument = Annotated[Path, arg(metavar="CAPTURE")]
ShownArgument = Annotated[
    Path,
    arg(metavar="PATH", help="A run, a fitted scene, a capture with a fit, or splats such as x.ply or x.spz."),
]
ExportedArgument = Annotated[str, arg(metavar="PATH")]
TargetArgument = Annotated[Path | None, arg(metavar="OUT")]
InstructionArgument = Annotated[str, arg(metavar="INSTRUCTION")]


def build_fit() -> Callable[..., None]:
    """Build `restage fit`."""
    from restage.scenes.config import PHOTOGRAPHS, FitConfig

    def fit(
        capture: Positional[CaptureArgument],
        *,
        size: int | None = None,
        out: Path | None = None,
        again: bool = False,
        follow_paths: bool = False,
        device: DeviceArgument = "auto",
        splats: Path | None = None,
        config: Annotated[FitConfig, arg(name="")] = PHOTOGRAPHS,
    ) -> None:
        """Fit Gaussian splats to a capture and say how well they render held-out views.

        Example: restage fit path/to/capture --size 160 --out runs/mine

        Args:
            capture: A folder of nerfstudio, Blender (NeRF's synthetic scenes), COLMAP, LLFF, Polycam or Record3D; or a
                folder of photographs or a video, whose cameras are found first (needs restage[colmap]).
            size: Longer side of the views in pixels; default: as they are.
            out: Folder of the run; default: `runs/` and the capture's name.
            again: Throw away the fit that the run holds, and fit anew.
            follow_paths: Use pictures outside of the capture's folder where its files name them.
            splats: Splats of this capture that were trained elsewhere, in its own frame, to be taken as the fit.
            device: Where to fit.
            config: How to fit. Steps, splats and shares that are left as they are follow the size: above 200 pixels
                there are more of them, and the first steps see smaller views.
        """
        from restage.scenes.config import for_size
        from restage.scenes.device import choose_device
        from restage.scenes.io import capture_name
        from restage.scenes.stage import fit_folder

        device = choose_device(device)
        out = out or Path("runs") / capture_name(capture)
        if splats is not None:
            from restage.scenes.io.posed import ReadOptions
            from restage.scenes.taken import take_splats

            if config != PHOTOGRAPHS:
                raise InputError("--splats takes splats as they are; omit the settings of a fit")
            options = ReadOptions(size=size, follow_paths=follow_paths)
            show_progress(take_splats(splats, out, capture=capture, options=options, again=again))
            say("\n".join(describe_run(out)))
            return
        how = {"size": size, "follow_paths": follow_paths, "again": again, "device": device}
        show_progress(fit_folder(capture, out, partial(for_size, config), **how))
        say("\n".join(describe_run(out)))

    return fit


def edit(
    scene: Positional[SceneArgument],
    instruction: Positional[InstructionArgument],
    *,
    method: str = "auto",
    editor: str = "auto",
    then: tuple[str, ...] = (),
    start: Path | None = None,
    strength: float = 1.0,
    time_budget: float | None = None,
    source_caption: str = "",
    target_caption: str = "",
    model: Path | None = None,
    region: Path | None = None,
    model_options: tuple[str, ...] = (),
    max_drift: float = 0.1,
    anchor: str = "",
    reference: tuple[Path, ...] = (),
    reference_mask: tuple[Path, ...] = (),
    device: DeviceArgument = "auto",
    size: int | None = None,
    out: Path | None = None,
    cameras: Path | None = None,
    up: Literal["guess", "x", "-x", "y", "-y", "z", "-z"] = "guess",
    seed: int = 0,
    estimate_only: bool = False,
    endpoint: Annotated[EndpointConfig, arg(name="")] = EndpointConfig(),  # noqa: B008
) -> None:
    """Edit a scene or a clip by an instruction, or a scene by several one after another.

    Example: restage edit runs/mine "make the cube blue" --then "turn it to night" --strength 0.7

    Example: restage edit film.mp4 "make it golden" --size 512

    Nothing is overwritten: to undo an edit, go on from the one before, or from the scene. An edit that is stopped
    with Ctrl-C leaves its scene as it was then in its folder, and starts over when it is asked for again.

    Args:
        scene: The run folder of a fitted scene; a capture, which is then fitted first; a file of splats, which
            cameras are placed around and whose renders stand for photographs; or a clip: a film (mp4, webm, gif, ...),
            what `restage clip` made, or with a method for clips a folder of frames.
        instruction: What to change.
        method: One of the menu in `restage/edit/methods`, by default `restage`; for a clip one of that in
            `restage/edit/clips`, by default `carried`. A film with a method for scenes is fitted first.
        editor: One of the menu in `restage/edit/editors`, or `noisy-<0 to 1>-<one of them>`; by default one
            that suits the scene, the instruction and this machine, which is said.
        then: More instructions; each starts from the result of the one before.
        start: Folder of a finished edit to start from, in place of the fitted scene.
        strength: How far every splat goes toward its edited state, from 0 to 1.
        time_budget: Seconds after which each edit stops with what it has.
        source_caption: What the scene shows before the edit; some editors use it.
        target_caption: What the scene shows after the edit.
        model: Folder of the editor's model, a pipeline's name in the hub's cache, such as owner/model, or a model's
            name at an endpoint; default for `edit_model`: the one that comes with the package.
        region: Where the scene may change: the name of a region (restage region --help), or its file; a folder of masks
            of all views or some, white inside, by their names; or a JSON file of boxes on some views,
            {"name.png": [left, top, right, bottom]} as shares of width and height.
        model_options: Options of the editor, as key=value. `pipeline` has steps, guidance, image_guidance, size,
            batch_size, dtype, weights and offload; `endpoint` sends all as fields of its own.
        max_drift: Views that the editor moves farther than this share of their width are left out; others are put back.
        anchor: The view that the editor edits first and then sees beside every other one, so that all come out alike:
            `auto`, a view's number, or a picture of a view that you edited elsewhere. Editors that take one picture get
            a grid; `grid:` before it asks for that. For `pipeline` and `endpoint`.
        reference: Pictures that the instruction refers to, as in "make the cube look like the picture"; for editors
            that take several pictures.
        reference_mask: A mask of the subject of each reference, white inside, where the rest is not meant.
        device: Where the scene is drawn and the editor's model computes.
        size: Longer side of the views in pixels, if a capture is fitted first, cameras are placed or a film is read.
        out: Folder of the run that a capture, a file of splats or a film is read into; default: `runs/` and its name.
        cameras: For a file of splats: a capture in their frame whose cameras are used, in place of placed ones; its
            pictures may be missing.
        up: For a file of splats: which of its axes is up.
        seed: Seed for the edit's noise.
        estimate_only: Say how many pictures the editor will be asked for, and what they cost, and edit nothing.
        endpoint: Where the editor `endpoint` asks, and what that may cost.
    """
    from restage.edit.clips.stage import is_clip
    from restage.edit.results import describe_change
    from restage.edit.single import estimate_edit
    from restage.recipes import EditChoice, edit_folder
    from restage.scenes.config import PHOTOGRAPHS, for_size
    from restage.scenes.device import choose_device
    from restage.scenes.io import capture_name, is_capture, splats_in
    from restage.scenes.references import GivenPicture
    from restage.scenes.stage import find_scene, fit_folder

    device = choose_device(device)
    if then and (source_caption or target_caption):
        raise InputError("captions belong to one instruction; give them with --start instead of --then")
    if is_clip(scene, method):
        only_scenes = {"then": then, "start": start, "time-budget": time_budget, "region": region, "anchor": anchor}
        only_scenes |= {"cameras": cameras, "reference": reference, "reference-mask": reference_mask}
        wrong = [f"--{name}" for name, value in only_scenes.items() if value]
        if wrong or strength != 1:
            raise InputError(f"{', '.join(wrong or ['--strength'])}: only scenes are edited so; {scene} is a clip")
        edit_a_clip(
            scene,
            EditRequest(instruction=instruction, source_caption=source_caption, target_caption=target_caption),
            size=size,
            out=out,
            estimate_only=estimate_only,
            choice={
                "method": "carried" if method == "auto" else method,
                "editor": editor,
                "model": model,
                "model_options": model_options,
                "max_drift": max_drift,
                "device": device,
                "seed": seed,
                "endpoint": endpoint,
            },
        )
        return
    if then and reference:
        raise InputError("a reference belongs to one instruction; give it with --start instead of --then")
    given = GivenPicture.read_all(reference, reference_mask)
    choice = EditChoice(
        method="restage" if method == "auto" else method,
        editor=editor,
        model=model,
        model_options=model_options,
        max_drift=max_drift,
        anchor=anchor,
        device=device,
        seed=seed,
        strength=strength,
        time_budget_s=time_budget,
        endpoint=endpoint,
        region=region,
    )
    is_splats = bool(splats_in(scene))
    if not is_splats and (cameras is not None or up != "guess"):
        raise InputError(f"--{'cameras' if cameras else 'up'} is for a file of splats, and {scene} is none")
    if cameras is not None and up != "guess":
        raise InputError("--up says how cameras are placed; omit it, or --cameras")
    if is_splats:
        from restage.scenes.io.posed import ReadOptions
        from restage.scenes.taken import Placement, splats_name, take_splats

        out = out or Path("runs") / splats_name(scene)
        placement = Placement(up=up) if size is None else Placement(up=up, size=size)
        options = ReadOptions(size=size)
        show_progress(take_splats(scene, out, cameras=cameras, placement=placement, options=options))
        scene = out
    elif is_capture(scene):
        out = out or Path("runs") / capture_name(scene)
        show_progress(fit_folder(scene, out, partial(for_size, PHOTOGRAPHS), size=size, device=device))
        scene = out
    elif out is not None or size is not None:
        option = "--out" if out is not None else "--size"
        raise InputError(f"{option} is for what is read into a new run; {scene} is of a run already")
    references = tuple(picture.reference if estimate_only else picture.keep(find_scene(scene)) for picture in given)
    requests = [
        EditRequest(
            instruction=text, source_caption=source_caption, target_caption=target_caption, references=references
        )
        for text in (instruction, *then)
    ]
    if estimate_only or editor == "endpoint":
        say(f"estimate: {estimate_edit(find_scene(scene), choice, num_edits=len(requests))}")
    if estimate_only:
        return
    *_, folder = show_result(edit_folder(scene, requests, choice, start=start))
    say(describe_change(folder))
    say(f"edited: {folder}")


def build_edits() -> Callable[..., None]:
    """Build `restage edits`."""
    from restage.edit.config import EditConfig
    from restage.work.task import EngineConfig

    def edits(
        run: Positional[RunArgument],
        *,
        methods: tuple[str, ...] = EditConfig.methods,
        editors: tuple[str, ...] = EditConfig.editors,
        scenes: tuple[str, ...] = EditConfig.scenes,
        edits: tuple[str, ...] = EditConfig.edits,
        seeds: tuple[int, ...] = EditConfig.seeds,
        device: DeviceArgument = "auto",
        engine: Annotated[EngineConfig, arg(name="")] = EngineConfig(),  # noqa: B008
    ) -> None:
        """Edit every scene of a run by several methods, for `restage compare`.

        Example: restage edits runs/mine --methods restage idu --editors edit_model

        The edits are those that `restage world` made with the scenes. What is done is not done again. To compare
        methods on other scenes, or with other settings than the defaults, write a study: restage study --help

        Args:
            run: Folder of the run.
            methods: Names on the menu in `restage/edit/methods`.
            editors: Names on the menu in `restage/edit/editors`; every method but `nothing` runs with each.
            scenes: Names of scenes; default: all that have edits.
            edits: Names of edits; default: all.
            seeds: Each edit is made once with each of these.
            device: Where scenes are drawn and models compute; with cuda each GPU of a machine has a worker of its own.
            engine: Where edits are made; with --engine ray all machines have to see the run's folder under one path.
        """
        from restage.edit.stage import run_edit
        from restage.scenes.device import choose_device

        device = choose_device(device)
        config = EditConfig(methods=methods, editors=editors, scenes=scenes, edits=edits, seeds=seeds)
        with working(open_run(run), "edit") as opened:
            show_progress(run_edit(opened, config, engine=engine, device=device))
        say(f"edits: {run / 'edit'}")

    return edits


def export(
    path: Positional[ExportedArgument],
    target: Positional[TargetArgument] = None,
    *,
    format: str = "",
    out: Path | None = None,
    frame: Literal["own", "upright"] = "own",
    store: StoreArgument = "",
) -> None:
    """Write a scene's splats, or a run's accepted image pairs, in a format that others read.

    Example: restage export runs/mine mine.spz; restage export runs/mine --format hf --out mine_pairs

    Splats go out as .ply, .compressed.ply, .spz, .splat, .sog or .glb, by the ending of OUT (docs/formats.md).

    Pairs come with a data card. The folder appears once it is complete; an export that was stopped goes on.

    Args:
        path: A run with one fitted scene, `<run>/scenes/<scene>`, the folder of an edit, or a file of splats, which is
            converted; for pairs, a run.
        target: What to write: a file of splats, or a folder.
        format: For pairs: `hf` (for Hugging Face's load_dataset), `webdataset`, `instruct-pix2pix` (for its loader), or
            `tryon` (laid out as VITON-HD, of pairs that refer to a picture).
            For splats it may be named too: `ply`, `compressed-ply`, `spz`, `splat`, `sog` or `gltf`.
        out: The same as OUT.
        frame: Coordinates of the splats: the capture's own, which its cameras fit, or the run's, upright with z up.
        store: Where the run's pairs lie, if not in its folder.
    """
    place = target or out
    if place is None or (target and out):
        raise InputError("name what to write, once: restage export PATH OUT, or --out OUT")
    from restage.scenes.io.splat_files import is_splat_format

    if not format or is_splat_format(format, place):
        from restage.scenes.stage import find_scene
        from restage.scenes.turning import export_splats

        source = Path(path) if Path(path).is_file() else find_scene(Path(path))
        say(f"{export_splats(source, place, frame=frame)} splats: {place}")
    else:
        from restage.pairs.exchange.export import export_pairs

        show_progress(export_pairs(path, place, format, store=store))
        say(f"{format}: {place}")


def view(
    path: Positional[ShownArgument], *, host: str = "127.0.0.1", port: int = 8080, device: DeviceArgument = "auto"
) -> None:
    """Show scenes in the browser, where you can type edits and watch them happen. Ctrl-C ends it.

    Example: restage view runs/demo

    Args:
        path: What to show.
        host: Address to listen on. Anything but this machine's own lets others see and edit.
        port: Port to listen on; the next free one if it is taken.
        device: Where scenes are drawn and edited.
    """
    from restage.scenes.device import choose_device
    from restage.view.serve import serve

    serve(path, host=host, port=port, device=choose_device(device))


def build_serve() -> Callable[..., None]:
    """Build `restage serve`."""
    from restage.serve.config import ServeConfig

    def serve(*, config: Annotated[ServeConfig, arg(name="")] = ServeConfig()) -> None:  # noqa: B008
        """Serve an editor over HTTP, as /v1/images/edits, so that other machines edit with this one. Ctrl-C ends it.

        Example: restage serve --editor grade; then elsewhere: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 restage edit
        runs/mine "make it golden" --editor endpoint

        Other machines reach it with --host 0.0.0.0, and then need the token that is printed, or that
        RESTAGE_SERVE_TOKEN holds. vLLM-Omni and SGLang serve big models faster, and the editor `endpoint` asks
        them as well.

        Args:
            config: What is served, and to whom.
        """
        from restage.serve.app import serve

        check_device(config.device)
        serve(config)

    return serve

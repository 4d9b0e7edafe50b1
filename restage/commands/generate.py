"""The sub-command `generate`: pictures, clips and scenes from text.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from restage.records import InputError
from restage.run.environment import check_device
from restage.run.models import add_on_of, models_in
from restage.run.progress import say, show_progress

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone
    from restage.diffusion.conditions import Conditions
    from restage.generate.config import LayoutConfig, PicturesConfig, ScenesOptions

__all__ = ["build_generate"]

CaptionsArgument = Annotated[tuple[str, ...], arg(metavar="CAPTION...")]
CLIP_SUFFIXES = (".mp4", ".webm", ".gif")
OTHER_SUFFIXES = (".avif", ".bmp", ".tif", ".tiff", ".webp", ".avi", ".m4v", ".mkv", ".mov", ".npy", ".npz", ".json")
OTHER_SUFFIXES += (".glb", ".gltf", ".ksplat", ".obj", ".ply", ".sog", ".splat", ".spz")
"""What nobody means by the folder of a run."""


def build_generate() -> Callable[..., None]:
    """Build `restage generate`."""
    from restage.generate.config import LayoutConfig, PicturesConfig, ScenesOptions

    def generate(
        caption: Positional[CaptionsArgument] = (),
        *,
        out: Path,
        captions: Path | None = None,
        config: Annotated[PicturesConfig, arg(name="")] = PicturesConfig(),  # noqa: B008
        layout: Annotated[LayoutConfig, arg(name="")] = LayoutConfig(),  # noqa: B008
        scenes: Annotated[ScenesOptions, arg(name="")] = ScenesOptions(),  # noqa: B008
        frames: int | None = None,
        motion: Path | None = None,
        backbone: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Make what captions say: pictures, where --out ends in .png or .jpg, clips with --frames, else scenes.

        With --control or --like the pictures keep a layout, and --out may be a folder of frames, or a clip of them.

        Example: restage generate "a red cube and a blue ball on the grass at noon" --out cube.png --num 4

        Example: restage generate "a blue house on the snow" --like runs/mine:3 --out house.png

        Example: restage generate "a red cube on the sand at night" --like clips/orbit --out orbit.mp4

        Example: restage generate "a red cone on the grass at noon" --out runs/cone; restage view runs/cone

        Example: restage generate --captions captions.txt --num 3 --generator sds ism refined --out runs/compared

        Several pictures or clips get numbers, as in cube-000.png. One that is there is kept if it was made from the
        same, which its file says, so that after Ctrl-C the same command goes on; else it is refused.

        A scene is splats with cameras and renders of its own, like one that was fitted: it can be viewed, edited and
        exported. While it grows, scenes/NAME/preview.png shows it, and Ctrl-C leaves scenes/NAME/splats.ply as it is
        then; the same command goes on.

        Args:
            caption: What is to be seen; several captions make pictures, clips or scenes of each.
            out: The picture or the clip to write, or the folder of the run.
            captions: A text file (UTF-8) with a caption on each line, in place of captions here.
            config: How pictures are sampled.
            layout: What holds the layout of pictures.
            scenes: How scenes are made.
            frames: Frames of a clip, which is made where --out ends in .mp4, .webm or .gif (then 8), or with this.
            motion: Folder of the temporal attention that makes clips, as `restage miniature train motion` or
                diffusers' MotionAdapter saves it (AnimateDiff, with --backbone); default: motion beside the backbone,
                except for frames with a layout that are more than it can tell apart.
            backbone: Folder of a text-to-image model of diffusers; default: the one that comes with the package, which
                knows the miniature world only.
            seed: Seed for the noise; further scenes of a caption take the seeds after it.
            device: Where the model computes, such as `cuda`.
        """
        from restage.generate.pictures import PICTURE_SUFFIXES, generate_pictures, picture_paths

        texts = _captions(caption, captions)
        suffix = out.suffix.lower()
        if suffix in OTHER_SUFFIXES:
            raise InputError(
                f"--out {out}: pictures end in {', '.join(PICTURE_SUFFIXES)}, clips in {', '.join(CLIP_SUFFIXES)}; "
                "scenes, and frames of pictures, go into a folder, and restage export writes splats as a file"
            )
        check_device(device)
        if suffix in CLIP_SUFFIXES or frames is not None:
            if suffix in PICTURE_SUFFIXES or (frames is not None and layout.is_given):
                raise InputError(
                    "--frames makes clips from text alone; --out ends in .mp4, .webm or .gif, or is a folder, and "
                    "clips with --control or --like have as many frames as these"
                )
            _refuse("a clip", scenes)
            where = {"out": out, "num_frames": 8 if frames is None else frames, "seed": seed, "device": device}
            _make_clips(texts, config, layout, motion=motion, backbone=backbone, **where)
            return
        if motion is not None:
            raise InputError("--motion is for clips, which --frames or an --out that ends in .mp4 asks for")
        if suffix not in PICTURE_SUFFIXES and not layout.is_given:
            _refuse("a scene", replace(config, num=1))
            _make_scenes(texts, scenes, out=out, seeds=range(seed, seed + config.num), backbone=backbone, device=device)
            return
        _refuse("a picture", scenes)
        model, layouts = _load(layout, backbone, device)
        show_progress(generate_pictures(model, texts, config, out=out, seed=seed, layouts=layouts))
        for path in picture_paths(out, config.num * len(texts) * max(1, len(layouts))):
            say(f"picture: {path}")

    return generate


def _refuse(what: str, options: "PicturesConfig | ScenesOptions") -> None:
    """Refuse options that have no meaning for what is made, rather than leave them unheeded."""
    changed = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    if changed:
        given = " and ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise InputError(f"{given} cannot be used for {what}; see restage generate --help")


def _load(layout: "LayoutConfig", backbone: Path | None, device: str) -> "tuple[Backbone, list[Conditions]]":
    """Load the model with the control branches that the layout asks for, and what they hold pictures to."""
    from restage.diffusion.backbone import load_backbone

    folder = backbone or models_in().text_to_image
    if not layout.is_given:
        return load_backbone(folder, device), []
    from restage.diffusion.branches import branch_sources
    from restage.generate.layouts import read_layouts

    if not layout.control and not layout.like:
        raise InputError("a control branch needs something to hold to: --control NAME=FILE or --like RUN:VIEW")
    model = load_backbone(folder, device, branches=branch_sources(layout.branch, folder))
    return model, read_layouts(layout.control, layout.like, model.branches)


def _make_clips(
    captions: list[str],
    config: "PicturesConfig",
    layout: "LayoutConfig",
    *,
    motion: Path | None,
    backbone: Path | None,
    out: Path,
    num_frames: int,
    seed: int,
    device: str,
) -> None:
    from restage.diffusion.motion import load_motion, max_frames
    from restage.generate.clips import clip_paths, generate_clips

    model_folder = backbone or models_in().text_to_image
    found = motion or add_on_of(model_folder, "motion")
    if found is None and not layout.is_given:
        raise InputError(
            f"no temporal attention lies beside {model_folder}, without which frames have nothing in common; train it "
            "with restage miniature train motion, name a MotionAdapter of diffusers with --motion, or hold each frame "
            "to a layout with --like"
        )
    model, layouts = _load(layout, backbone, device)
    adapter = None if found is None else load_motion(found, model.unet, device)
    if adapter is not None and motion is None and layouts and not 2 <= len(layouts) <= max_frames(adapter):
        adapter = None
    made = generate_clips(model, adapter, captions, config, out=out, num_frames=num_frames, seed=seed, layouts=layouts)
    show_progress(made)
    for path in clip_paths(out, config.num * len(captions)):
        say(f"clip: {path}")


def _make_scenes(
    captions: list[str],
    options: "ScenesOptions",
    *,
    out: Path,
    seeds: range,
    backbone: Path | None,
    device: str,
) -> None:
    from restage.audit.show import describe_run
    from restage.generate.scene import SceneOrder, choose_generator, generate_scenes

    orders = {
        name: SceneOrder(
            captions=tuple(captions),
            seeds=tuple(seeds),
            generator=name,
            preset=options.preset,
            num_steps=options.scene_steps,
            model=backbone,
            views=options.views,
            device=device,
        )
        for name in options.generator
    }
    for order in orders.values():  # what cannot be made is refused before anything is
        choose_generator(order)
    for name, order in orders.items():
        folder = out if len(orders) == 1 else out / name
        show_progress(generate_scenes(folder, order))
        say("\n".join(describe_run(folder)))


def _captions(given: tuple[str, ...], file: Path | None) -> list[str]:
    if file is not None:
        if given:
            raise InputError("give captions here, or in a file with --captions, not both")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()  # as Windows' editor writes it, too
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is not readable as captions, one on each line: {error}") from None
        given = tuple(line for line in lines if line.strip())
        if not given:
            raise InputError(f"{file} holds no captions; expected one on each line")
    if not given:
        raise InputError("expected a caption, or a file of captions with --captions")
    if not all(caption.strip() for caption in given):
        raise InputError("expected captions that say something, got an empty one")
    return [caption.strip() for caption in given]

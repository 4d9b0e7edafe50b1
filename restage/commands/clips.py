"""Sub-commands of clips: making them, and the branch of `restage edit` that edits one.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from restage.records import EditRequest, InputError
from restage.run.layout import CLIP_RECORD
from restage.run.progress import say, show_progress

__all__ = ["build_clip", "edit_a_clip"]

ClipArgument = Annotated[Path, arg(metavar="CLIP")]


def build_clip() -> Callable[..., None]:
    """Build `restage clip`."""
    from restage.clips.config import ClipOptions

    def clip(
        folder: Positional[ClipArgument],
        *,
        film: Path | None = None,
        run: Path | None = None,
        motion: Literal["slide", "turn", "sun", "still"] = "slide",
        moves_camera: bool = False,
        num_frames: int = 8,
        edit_kinds: tuple[str, ...] = (),
        edition: Literal[1, 2] = 2,
        seed: int = 0,
        options: Annotated[ClipOptions, arg(name="")] = ClipOptions(),  # noqa: B008
    ) -> None:
        """Make a clip, to be edited by `restage edit CLIP`: of the miniature world, of a scene, or from a film.

        Example: restage clip clips/first --motion turn --moves-camera --edit-kinds recolour

        Example: restage clip clips/walk --film walk.mp4 --every 2 --size 512 --start-s 3 --length-s 4

        Example: restage clip orbit.mp4 --run runs/mine --num-frames 72

        Args:
            folder: Folder of the clip; with a name that ends in .mp4 or .webm a film is made of it, and no more.
            film: A film (mp4, webm, gif, ...) or a folder of frames that is read, with its sound.
            run: A run with one fitted scene, of which an orbit is made.
            motion: What moves in a clip of the world: an object that slides or turns, the sun, or nothing.
            moves_camera: Let the camera go around a scene of the world.
            num_frames: Number of frames of a clip of the world or an orbit.
            edit_kinds: Kinds of edit of a clip of the world to write the exact truth of, such as recolour or time.
            edition: Edition of the world's grammar; the models that come with the package know the first one best.
            seed: Seed for scene, motion, camera and edits of a clip of the world.
            options: How a film is read; `size` holds for all.
        """
        if (folder / CLIP_RECORD).exists() and film is None:
            raise InputError(f"{folder} holds a clip already; choose another folder")
        if film is not None and run is not None:
            raise InputError("a clip comes from a film or from a run; give --film or --run")
        if film is None and options != ClipOptions(size=options.size):
            raise InputError("--every, --start-s, --length-s and --frames-per-s say how a film is read; give --film")
        is_film = folder.suffix.lower() in (".mp4", ".webm")
        if edit_kinds and (is_film or film is not None or run is not None):
            raise InputError("--edit-kinds is for folders of clips of the world, whose exact truth is written")
        if is_film and folder.exists():
            raise InputError(f"{folder} is there already; choose another name")
        with contextlib.ExitStack() as kept:
            made = Path(kept.enter_context(tempfile.TemporaryDirectory())) / folder.stem if is_film else folder
            if film is not None:
                from restage.clips.files import store_clip

                show_progress(store_clip(film, made, options))
            elif run is not None:
                from restage.edit.clips.orbits import write_orbit

                show_progress(write_orbit(run, made, num_frames=num_frames, size=options.size))
            else:
                from restage.world.clips import sample_clip, sample_clip_edits, write_clip, write_clip_truth

                scene = None
                if edition == 1:
                    from restage.world.grammar import sample_description

                    scene = sample_description(seed, split="all")
                how = {"motion": motion, "moves_camera": moves_camera, "num_frames": num_frames}
                sampled = sample_clip(seed, scene=scene, size=options.size or 128, **how)
                write_clip(sampled, made)
                for edit in sample_clip_edits(sampled, edit_kinds, seed, edition=edition):
                    say(f"truth of: {edit.instruction}  ({write_clip_truth(sampled, edit, made)})")
            if is_film:
                from restage.clips.files import open_clip
                from restage.clips.films import write_film

                stored = open_clip(made)
                frames = (stored.read([index])[0] for index in range(len(stored)))
                write_film(folder, frames, frames_per_s=stored.record.frames_per_s, sound=stored.sound)
        is_of_world = film is None and run is None and not is_film
        say(f"clip: {folder}" + (f"; look at {folder / 'clip.webp'} or {folder / 'sheet.png'}" if is_of_world else ""))

    return clip


def edit_a_clip(
    path: Path, request: EditRequest, *, size: int | None, out: Path | None, estimate_only: bool, choice: dict[str, Any]
) -> None:
    """Read a clip into a run if it is not one already, edit it, and say how good that is where truth is known."""
    from restage.clips.config import ClipOptions
    from restage.clips.files import open_clip
    from restage.compare.clips import describe_scores
    from restage.edit.clips.job import spans
    from restage.edit.clips.stage import ClipChoice
    from restage.edit.results import describe_change
    from restage.recipes import edit_clip_folder, take_clip

    chosen = ClipChoice(**choice)
    last = show_progress(take_clip(path, out, ClipOptions(size=size)))
    assert last is not None
    folder = Path(last.note)
    method = chosen.resolved()
    if estimate_only or chosen.editor == "endpoint":
        windows = spans(len(open_clip(folder)), method.window, method.overlap) if chosen.asks_editor else []
        count = sum(map(len, windows))
        price = chosen.endpoint.price_per_picture
        say(f"estimate: {count} pictures at most" + (f", {count * price:.4g} at {price:g} each" if price else ""))
    if estimate_only:
        return
    last = show_progress(edit_clip_folder(folder, [request], chosen))
    result = Path(last.note) if last else folder
    say(describe_change(result))
    for line in describe_scores(result):
        say(line)
    say(f"edited: {result / 'clip.mp4'}")

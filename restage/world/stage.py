"""The world stage: scenes of the procedural world as captures on disk, with edits and their exact truth.

Writes `<run>/scenes/<scene>/` as docs/conventions.md lays it out; fitting, editing and comparing read it from there.
What is complete on disk is not made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.records import (
    EditCase,
    InputError,
    Progress,
    content_id,
    derive_seed,
    read_json,
    write_atomically,
    write_json,
)
from restage.run.folder import RunFolder
from restage.run.layout import CAPTURE, EDIT_CASE, REFERENCES, TRANSFORMS, TRUTH
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.io.nerfstudio import write_capture
from restage.world import grammar
from restage.world.capture import make_capture, make_truth, shown_together
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.description import Description, Edit
from restage.world.editions import EDITIONS
from restage.world.references import REFERENCED_KINDS, give_picture, render_reference

__all__ = ["edit_name", "make_scene", "run_world", "sample_scene"]

STAGE = "world"
MAX_SCENE_TRIES = 1000


def edit_name(edit: Edit) -> str:
    """Return the name of an edit's folder: its kind, and 6 hex digits of its content."""
    return f"{edit.kind}-{content_id('edit', edit).rpartition('-')[2][:6]}"


def sample_scene(config: WorldConfig, *, name: str, seed: int) -> tuple[Description, tuple[Edit, ...]]:
    """Sample a scene that allows all wanted kinds of edit, and the edits.

    Raises:
        InputError: no scene allows them all, such as adding to one of three objects.
    """
    edition = EDITIONS[config.edition]
    for attempt in range(MAX_SCENE_TRIES):
        description = edition.sample_description(
            derive_seed(seed, name, attempt), num_objects=config.num_objects, split=config.split
        )
        if set(config.edit_kinds) <= set(edition.possible_kinds(description)):
            edits = (
                edition.sample_edit(description, derive_seed(seed, name, kind), kind=kind, split=config.split)
                for kind in config.edit_kinds
            )
            return description, tuple(edits)
    raise InputError(
        f"no scene of {config.num_objects or 'any number of'} objects allows {', '.join(config.edit_kinds)}; "
        "leave a kind out or change num_objects"
    )


def make_scene(
    folder: Path,
    description: Description,
    edits: Sequence[Edit],
    *,
    name: str,
    seed: int,
    config: CaptureConfig | None = None,
) -> Iterator[str]:
    """Write a scene's capture and the truth of its edits into `folder`; yields a line when each is there.

    Each edit becomes `truth/<edit name>/`; the seed chooses cameras, points and the wording of captions.

    Raises:
        InputError: the folder holds another scene, or an edit starts from another scene.
    """
    config = config or CaptureConfig()
    if any(edit.before != description for edit in edits):
        raise InputError(f"{name}: expected edits of this scene, got one that starts from another description")
    _claim_folder(folder, description)
    missing = [edit for edit in edits if not (folder / TRUTH / edit_name(edit) / EDIT_CASE).exists()]
    if (folder / CAPTURE / TRANSFORMS).exists():
        capture = read_capture(folder / CAPTURE) if missing else None
    else:
        placed = [edit.after for edit in edits if edit.place is not None]
        capture = make_capture(
            description,
            name=name,
            seed=seed,
            num_views=config.num_views,
            held_out_every=config.held_out_every,
            size=config.size,
            num_points=config.num_points,
            framed=shown_together(description, *placed) if placed else None,
        )
        write_capture(capture, folder / CAPTURE)
    yield f"{name}: capture"
    for edit in edits:
        if capture is not None and edit in missing:
            _write_truth(folder / TRUTH / edit_name(edit), edit, capture, seed)
        yield f"{name}: {edit.instruction}"


def _claim_folder(folder: Path, description: Description) -> None:
    """Write `description.json`, or see that the one that is there says the same."""
    path = folder / "description.json"
    if not path.exists():
        write_json(path, description)
    elif Description.from_plain(read_json(path)) != description:
        raise InputError(f"{path} describes another scene; choose another folder")


def _write_truth(folder: Path, edit: Edit, capture: Capture, seed: int) -> None:
    """Write the true edited views and masks of all views, a picture that the edit refers to, and `edit.json` last."""
    truth = make_truth(edit, capture.cameras)
    for file_name, image, mask in zip(capture.file_names, truth.images, truth.masks, strict=True):
        _write_png(folder / "images" / file_name, image.permute(1, 2, 0))
        _write_png(folder / "masks" / file_name, mask)
    request = grammar.request_of(edit, seed)
    if edit.kind in REFERENCED_KINDS:
        shown = render_reference(edit, derive_seed(seed, edit_name(edit)), size=capture.cameras.width)
        request = replace(request, references=(give_picture(shown).keep(folder.parents[1]),))
    write_json(folder / EDIT_CASE, EditCase(scene=capture.name, kind=edit.kind, request=request, has_truth=True))


def _write_png(path: Path, pixels: Float[Tensor, "h w *channels"]) -> None:
    with write_atomically(path) as temporary:
        Image.fromarray((pixels.numpy() * 255).round().astype("uint8")).save(temporary)


def run_world(run: RunFolder, config: WorldConfig) -> Iterator[Progress]:
    """Make all scenes and edits that are not there yet.

    Raises:
        InputError: the config cannot be fulfilled, or a scene's folder holds another scene.
    """
    total = config.num_scenes * (1 + len(config.edit_kinds))
    if run.is_done(STAGE, config):
        yield Progress(stage=STAGE, done=total, total=total, note="already done")
        return
    done = 0
    names = [f"scene-{index:03d}" for index in range(config.num_scenes)]
    for name in names:
        description, edits = sample_scene(config, name=name, seed=run.seed)
        folder = run.folder("scenes") / name
        seed = derive_seed(run.seed, name)
        for note in make_scene(folder, description, edits, name=name, seed=seed, config=config.capture):
            done += 1
            yield Progress(stage=STAGE, done=done, total=total, note=note)
    made = [f"scenes/{name}/{part}/**/*" for name in names for part in ("capture", "truth", REFERENCES)]
    run.mark_done(STAGE, config, also=made, scenes=names)

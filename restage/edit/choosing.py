"""Which editor an edit gets when the user names none: what suits the scene, the instruction and this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from restage.edit.editors.grade import read_grade
from restage.edit.families import FAMILIES, cached_pipelines, find_model, has_try_on_weights, pipeline_class
from restage.edit.single import EditChoice, EditorChoice
from restage.records import EditRequest, InputError
from restage.run.layout import is_stage_done
from restage.run.models import is_miniature

__all__ = ["ChosenEditor", "choose_editor"]


Choice = TypeVar("Choice", bound=EditorChoice)


@dataclass(frozen=True)
class ChosenEditor(Generic[Choice]):
    """An editor that was chosen for the user."""

    choice: Choice
    reason: str  # why it was, to be said


def choose_editor(choice: Choice, scene_folder: Path, request: EditRequest) -> ChosenEditor[Choice]:
    """Choose an editor; everything else is kept as it was chosen.

    Raises:
        InputError: no editor would do anything sensible here; lists the ways there are.
    """
    if not choice.asks_editor:
        return ChosenEditor(replace(choice, editor="edit_model"), "the method asks none")
    has_address = bool(choice.endpoint.base_url or os.environ.get("OPENAI_BASE_URL"))
    if choice.model is not None and has_address and not choice.model.exists():
        return ChosenEditor(replace(choice, editor="endpoint"), f"an endpoint is set, and {choice.model} is no folder")
    if choice.model is not None and has_try_on_weights(choice.model):
        return ChosenEditor(replace(choice, editor="try_on"), f"{choice.model} holds weights of try-on")
    if choice.model is not None:
        name = pipeline_class(find_model(choice.model))
        if name == "StableDiffusionInstructPix2PixPipeline" and not choice.model_options:
            return ChosenEditor(replace(choice, editor="instruct_pix2pix"), f"{choice.model} is one")
        if name in FAMILIES:
            return ChosenEditor(replace(choice, editor="pipeline"), f"{choice.model} holds a {name}")
        return ChosenEditor(replace(choice, editor="edit_model"), f"{choice.model} is no pipeline of diffusers")
    if is_miniature(scene_folder):
        return ChosenEditor(replace(choice, editor="edit_model"), "the scene is of the miniature world")
    if is_stage_done(scene_folder.parents[1], "train"):
        return ChosenEditor(replace(choice, editor="edit_model"), "the run trained an edit model of its own")
    if has_address and os.environ.get("RESTAGE_EDITOR_MODEL"):
        return ChosenEditor(replace(choice, editor="endpoint"), "an endpoint is set")
    cached = cached_pipelines()
    if cached and choice.device.startswith("cuda"):
        first = cached[0]
        chosen = replace(choice, editor="pipeline", model=Path(first.name))
        return ChosenEditor(chosen, f"{first.name} is in the hub's cache")
    try:
        asked = read_grade(request.instruction)
    except InputError:
        asked = None
    has_region = isinstance(choice, EditChoice) and choice.region is not None
    if asked is not None and not request.references and (has_region or not asked.subject):
        return ChosenEditor(replace(choice, editor="grade"), "the instruction names a color or a light")
    in_cache = ", ".join(pipeline.name for pipeline in cached) or "none"
    raise InputError(
        f"no editor here can '{request.instruction}' on photographs (the shipped edit model knows the miniature world "
        "alone); choose one: --editor pipeline --model FOLDER_OR_NAME --device cuda (in the hub's cache: "
        f"{in_cache}), --editor instruct_pix2pix --model FOLDER"
        ", --editor endpoint with OPENAI_BASE_URL and RESTAGE_EDITOR_MODEL set, or --editor grade for a color or light "
        "of the whole view, as in 'make it golden'"
    )

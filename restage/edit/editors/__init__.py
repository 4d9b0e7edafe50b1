"""The menu of 2D editors that the 3D methods work with; each is one file and one line here."""

from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.interface import Edited, Editor, EditorFactory, EditorSource
from restage.records import InputError

__all__ = ["EDITORS", "Edited", "Editor", "EditorFactory", "EditorSource", "ExactEditor"]


def _open_edit_model(source: EditorSource) -> Editor:
    if source.model is None or not source.model.is_dir():
        raise InputError(f"expected the folder of a trained edit model, got {source.model}; run: restage train")
    # Imported here since diffusers takes seconds, which only those who use a model should pay.
    from restage.diffusion.editor import load_edit_model
    from restage.edit.editors.edit_model import ModelEditor

    return ModelEditor(model=load_edit_model(source.model))


EDITORS: dict[str, EditorFactory] = {
    "exact": ExactEditor.open,
    "edit_model": _open_edit_model,
}

"""An editor that is shown the pictures of a request beside every view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from restage.edit.editors.interface import Edited, Editor, KnownScores, ScoreModel, ViewBatch, score_model_of
from restage.records import InputError
from restage.scenes.references import ShownPicture

__all__ = ["ReferencedEditor", "show_references"]


@dataclass(frozen=True)
class ReferencedEditor:
    """Another editor, which sees the same pictures with each batch."""

    editor: Editor
    references: tuple[ShownPicture, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)  # what else some editors offer

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`. References of the batch itself, such as an anchor, come first."""
        return self.editor.edit(replace(batch, references=(*batch.references, *self.references)))

    def scores(self) -> ScoreModel | KnownScores:
        """The score model of the other one, which sees the pictures, too."""
        scores: Any = score_model_of(self.editor)
        if isinstance(scores, KnownScores):
            return KnownScores(self)
        if not hasattr(scores, "references"):
            raise InputError("this editor cannot be distilled by a picture; choose another method or omit --reference")
        return replace(scores, references=self.references)


def show_references(editor: Editor, references: Sequence[ShownPicture]) -> Editor:
    """Have an editor look at the pictures of a request; what puts views back goes around it.

    Raises:
        InputError: the editor looks at no other picture than the view.
    """
    if not references:
        return editor
    if not getattr(editor, "takes_references", False):
        raise InputError(
            "this editor looks at no picture but the view; omit --reference, or choose pipeline or endpoint with a "
            "model of several pictures, or an edit model that was trained with references"
        )
    from restage.edit.editors.settled import SettledEditor  # OpenCV takes a moment

    if isinstance(editor, SettledEditor):
        return replace(editor, editor=ReferencedEditor(editor.editor, tuple(references)))
    return ReferencedEditor(editor, tuple(references))

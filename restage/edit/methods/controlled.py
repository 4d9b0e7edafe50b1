"""Views painted anew from their own noise under the scene's depth (GaussCtrl), and fitted to at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from restage.edit.editors.interface import AskedPictures
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.restage import choose_key_views
from restage.edit.sharing import ViewLayout
from restage.records import InputError
from restage.scenes.config import RefineConfig
from restage.scenes.fit import Targets, refine_splats
from restage.scenes.layouts import splat_depths

__all__ = ["Controlled"]


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """Every view is painted anew from the noise that it comes from, held by the splats' own depth, then all are fitted.

    GaussCtrl (Wu et al. 2024, arXiv 2403.08733): DDIM inversion, a depth ControlNet, 0.6 of a view's own attention and
    0.4 of that to four reference views, a masked composite, and 1,000 steps of the fit. Here reference views are those
    farthest apart, and what lies outside of a region stays as it was if there is one (`--region`). It is made for
    the editor `text_to_image` with a control branch; other editors edit each view in their own way, so that it then is
    `replace_once`.

    Memory: that of a fit step, of a dozen views in the editor, and of all training views and their depths once more.
    """

    num_steps: int = 400
    """Fit steps."""
    noise_level: float = 1.0
    """Share of the schedule that views are taken back to."""
    num_references: int = 4
    """Views that all attend to."""
    own_share: float = 0.6
    """Weight of a view's attention to itself; the reference views share the rest."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.num_references < 1 or not 0 < self.noise_level <= 1:
            raise InputError(
                f"expected num_steps and num_references of at least 1, a noise level in (0, 1], got {self}"
            )

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(num_views, False)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Paint, then fit."""
        cameras, places = job.capture.cameras, range(len(job.view_indices))
        yield EditStep(0, self.num_steps, 0.0, job.splats.clone(), "painting every view under its depth")
        references = tuple(choose_key_views(cameras, self.num_references))
        layout = ViewLayout(splat_depths(job.splats, cameras), references, self.own_share)
        batch = job.batch(places, noise_level=self.noise_level, seed=job.seed, may_leave_out=True)
        edited = job.editor.edit(replace(batch, layout=layout))
        targets = Targets(cameras[edited.answered], edited.images[edited.answered])
        for step in refine_splats(job.splats, targets, config=RefineConfig(steps=self.num_steps, seed=job.seed)):
            yield EditStep(step.step, self.num_steps, step.loss, step.splats.clone(), "fitting to the painted views")

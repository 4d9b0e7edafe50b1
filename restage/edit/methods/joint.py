"""Joint editing (DGE): views are edited as one, through attention that key views share, then fitted to at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from restage.edit.editors.interface import AskedPictures, Edited, can_share_attention
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.restage import choose_key_views
from restage.edit.sharing import ViewSharing
from restage.records import InputError, derive_seed
from restage.scenes.config import RefineConfig
from restage.scenes.fit import Targets, refine_splats, render_views

__all__ = ["Joint"]


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A few views are edited together, the scene is fitted to them, and both again from less noise.

    DGE (Chen et al. 2024, arXiv 2404.18929): at every denoising step one view of each group is a key view; key views
    attend to the tokens of all key views; the others take over the key views' outputs at the best match of features
    within one token of the epipolar line, blended from the two nearest key views. Published: 20 views in groups of 5,
    noise levels 0.999, 0.3, 0.3 and 0.021, 500 fit steps after each, 10 L1 + 10 LPIPS. Here 120 steps, since learning
    rates are those of the miniature, and the loss is the fit's own. An editor without attention to share (exact,
    grade) edits each view by itself.

    Memory: that of a fit step, and of all its views at once in the editor, for each variant of the guidance.
    """

    num_views: int = 20
    """Views that are edited and fitted to, far apart from each other; all training views if there are fewer."""
    group_size: int = 5
    """Views for each key view."""
    noise_levels: tuple[float, ...] = (1.0, 0.3, 0.3, 0.021)
    """Share of the schedule that each edit starts at."""
    steps_per_round: int = 120
    """Fit steps after each edit."""

    def __post_init__(self) -> None:
        if not self.noise_levels or not all(0 < level <= 1 for level in self.noise_levels):
            raise InputError(f"expected at least one noise level, all in (0, 1], got {self.noise_levels}")
        if self.num_views < 1 or self.group_size < 1 or self.steps_per_round < 1:
            raise InputError(f"expected num_views, group_size and steps_per_round of at least 1, got {self}")

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(len(self.noise_levels) * min(self.num_views, num_views), min(self.noise_levels) < 1)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit together, fit, and again."""
        chosen = choose_key_views(job.capture.cameras, self.num_views)
        cameras, originals = job.capture.cameras[chosen], job.capture.images[chosen]
        splats, done, total = job.splats.clone(), 0, self.steps_per_round * len(self.noise_levels)
        how = "together" if can_share_attention(job.editor) else "each by itself"
        for number, noise_level in enumerate(self.noise_levels):
            yield EditStep(done, total, 0.0, splats, f"round {number + 1}: editing {len(chosen)} views, {how}")
            edited = self._edit(job, chosen, number, originals if number == 0 else render_views(splats, cameras))
            config = RefineConfig(steps=self.steps_per_round, seed=derive_seed(job.seed, "fit", number))
            targets = Targets(cameras[edited.answered], edited.images[edited.answered])
            for step in refine_splats(splats, targets, config=config):
                done, fitted = done + 1, step.splats.clone()
                yield EditStep(done, total, step.loss, fitted, f"round {number + 1}: fitting, noise was {noise_level}")
                splats = fitted

    def _edit(self, job: EditJob, chosen: list[int], number: int, views: Tensor) -> Edited:
        seed = derive_seed(job.seed, "joint", number)
        # Its own seed for each round, so that other views become key views.
        sharing = ViewSharing(job.capture.cameras[chosen], self.group_size, seed)
        level = self.noise_levels[number]
        batch = job.batch(chosen, views, noise_level=level, seed=seed, sharing=sharing, may_leave_out=True)
        return job.editor.edit(batch)

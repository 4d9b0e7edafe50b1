"""Which splats the viewer's user has chosen: by tools, by words, or as a region of the run."""

from __future__ import annotations

from typing import Literal

import torch

from restage.edit.direct.cleaning import find_floaters
from restage.edit.direct.operations import carry_weights
from restage.records import InputError
from restage.regions.files import list_regions, read_region, write_region
from restage.regions.growing import grow_from, seeds_at
from restage.regions.making import RegionMaker
from restage.regions.region import Region, combine, splats_sha256
from restage.scenes.cameras import Cameras
from restage.view.history import SceneHistory
from restage.view.versions import SELECTION, Clicked

__all__ = ["SceneChoice"]


class SceneChoice(SceneHistory):
    """The splats that are chosen in the version that is shown (`selected`)."""

    def choose_scene(self, name: str) -> None:
        """Show another scene of the run, in which nothing is chosen; the history starts anew."""
        super().choose_scene(name)
        self.selected_name = SELECTION
        self._clicked: Clicked | None = None
        self._maker: RegionMaker | None = None

    def select(self, region: Region | None, how: Literal["new", "add", "take"] = "new", *, name: str = "") -> None:
        """Choose splats: instead of those that are chosen, beside them, or taken away from them.

        `region` belongs to the splats that are shown; None chooses none. The name is that of a region of the run.
        """
        old = self.selected
        if region is not None and old is not None and how == "add":
            region = combine("or", old, region)
        elif region is not None and how == "take":
            region = None if old is None else combine("and", old, combine("not", region))
        self.selected = region if region is not None and bool(region.inside.any()) else None
        self.selected_name, self._clicked = name or SELECTION, None

    def maker(self) -> RegionMaker:
        """The ways to make regions of the scene before any edit; a file of splats gets its run for them."""
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        for _ in self._make_run():
            pass
        assert self.scene.folder is not None
        if self._maker is None:
            self._maker = RegionMaker(self.scene.folder, splats=self.before, capture=self.scene.capture)
        return self._maker

    def choose_object(self, camera: Cameras, place: tuple[float, float], how: Literal["new", "add", "take"]) -> None:
        """Choose the thing that a camera (n = 1) sees at a place, in shares of its picture's width and height.

        Beside what was chosen by clicks before, the click says what else belongs to the thing, or what does not.
        """
        graph = self.maker().graph
        seeds = self.origins()[seeds_at(self.shown.splats, camera, *place)]
        seeds = seeds[seeds >= 0]
        if not len(seeds):
            raise InputError("an edit added what is there; choose it with the brush, a box or the lasso")
        clicked = self._clicked if self._clicked is not None and how != "new" else None
        positive, negative = clicked or (seeds.new_empty(0), seeds.new_empty(0))
        if clicked is not None and how == "take":
            negative = torch.cat([negative, seeds]).unique()
        else:
            positive = torch.cat([positive, seeds]).unique()
        weights = grow_from(graph, positive, negative)
        points = [[round(value, 6) for value in self.before.means[seed].tolist()] for seed in positive[:8].tolist()]
        region = Region.of(self.before, weights, by="clicks", points=points)
        self.select(self.carry(region), "new" if clicked is not None else how)
        self._clicked = Clicked(positive, negative) if clicked is not None or how == "new" else None

    def choose_by_words(self, words: str) -> None:
        """Choose what words say, such as "the bear"."""
        if not words.strip():
            raise InputError('expected words, such as "the bear"')
        self.select(self.carry(self.maker().by_words(words.strip())), name=words.split()[-1].lower())

    def choose_floaters(self) -> None:
        """Choose floaters and haze, to be looked at and deleted."""
        found = find_floaters(self.before, self.maker().capture).is_found
        if not bool(found.any()):
            raise InputError("no floaters were found")
        self.select(self.carry(Region.of(self.before, found.float(), by="floaters")), name="floaters")

    def chosen(self) -> Region:
        """The splats that are chosen; refuses none."""
        if self.selected is None:
            raise InputError("no splats are chosen; choose a tool under Region and click at something")
        return self.selected

    def regions(self) -> list[str]:
        """Names of the regions in the run that belong to the scene before any edit, or to what is shown."""
        if self.scene.run_folder is None:
            return []
        hashes = {splats_sha256(self.before), splats_sha256(self.shown.splats)}
        found = list_regions(self.scene.run_folder, self.scene.name)
        return [name for name, record in found.items() if record.splats_sha256 in hashes]

    def open_region(self, name: str) -> None:
        """Choose the splats of a region of the run; one of the scene before any edit is carried along."""
        run, shown = self.scene.run_folder, self.shown.splats
        if run is None:
            raise InputError("this scene is in no run, which regions are kept in")
        region = read_region(run, self.scene.name, name)
        if region.splats_sha256 != splats_sha256(shown):
            region.check_fits(self.before, name)
            region = self.carry(region)
        self.select(region, name=name)

    def carry(self, region: Region) -> Region:
        """Return a region of the scene before any edit as one of what is shown; what edits added is not in it."""
        if self.shown.splats is self.before:
            return region
        weights = carry_weights(region.weights, self.origins())
        return Region.of(self.shown.splats, weights, by="carried", of=[region.id])

    def save_region(self, name: str) -> None:
        """Write the chosen splats into the run as a region."""
        region = self.chosen()
        for _ in self._make_run():
            pass
        assert self.scene.run_folder is not None
        write_region(self.scene.run_folder, self.scene.name, name, region)
        self.selected_name = name

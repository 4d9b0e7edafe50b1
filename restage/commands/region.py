"""The sub-command `region`: which splats of a scene are meant.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from restage.records import InputError
from restage.run.progress import say

__all__ = ["build_region"]

RunArgument = Annotated[Path, arg(metavar="RUN")]
WordsArgument = Annotated[str, arg(metavar="WORDS")]
Place = tuple[str, float, float]
Point = tuple[float, float, float]


def build_region() -> Callable[..., None]:
    """Build `restage region`."""

    def region(
        run: Positional[RunArgument],
        words: Positional[WordsArgument] = "",
        *,
        name: str = "",
        caption: str = "",
        segmenter: tuple[Path, ...] = (),
        click: tuple[Place, ...] = (),
        not_click: tuple[Place, ...] = (),
        point: tuple[Point, ...] = (),
        not_point: tuple[Point, ...] = (),
        box: tuple[str, float, float, float, float] | None = None,
        lasso: tuple[str, ...] = (),
        to_object: bool = False,
        masks: Path | None = None,
        boxes: Path | None = None,
        inside: tuple[float, float, float, float, float, float] | None = None,
        sphere: tuple[float, float, float, float] | None = None,
        plane: tuple[float, float, float, float] | None = None,
        color: tuple[float, float, float, float] | None = None,
        all_of: Annotated[tuple[str, ...], arg(name="and")] = (),
        any_of: Annotated[tuple[str, ...], arg(name="or")] = (),
        none_of: Annotated[str, arg(name="not")] = "",
        grow: float | None = None,
        shrink: float | None = None,
        largest: bool = False,
        show: str = "",
        delete: str = "",
    ) -> None:
        """Make a region of a fitted scene, keep it under a name, and show it; without options, list regions.

        Example: restage region runs/mine "the bear"; restage region runs/mine --click frame_00002.png 0.5 0.5 --name
        bear; restage region runs/mine --and bear --grow 0.05 --name around; then restage edit runs/mine "make it
        bronze" --region bear

        A region is made in one of these ways: words, clicks and points, a box or lasso in a view, masks, boxes in
        several views, a place, a color, or other regions. Places in views are shares of width and height from the top
        left, places in the scene are in world units. A name that is there is replaced.

        Args:
            run: The run of a fitted scene, or `<run>/scenes/<scene>`.
            words: What is meant, such as "the red cube". Photographs need --segmenter, or the extra `segment`, which
                finds the most conspicuous thing whatever the words are.
            name: Name of the region; default for words: the last of them.
            caption: For words, in scenes of the miniature world: what the whole scene shows, the words included.
            segmenter: For words: a folder of CLIPSeg, or one of GroundingDINO and one of SAM 2, of transformers.
            click: Places that lie on the thing, each as VIEW X Y; VIEW is a file name or number.
            not_click: Places that do not, in the same way.
            point: Points of the scene that lie on the thing, each as X Y Z.
            not_point: Points that do not.
            box: Box in a view: VIEW LEFT TOP RIGHT BOTTOM; what the view shows in it.
            lasso: Outline in a view: VIEW X1 Y1 X2 Y2 X3 Y3 ...
            to_object: Grow what is in the box or lasso to the thing.
            masks: Folder of masks of views, white inside, PNG by their names; views may be missing.
            boxes: JSON file of boxes around the thing in several views, {"name.png": [left, top, right, bottom]}.
            inside: Box along the world's axes: X Y Z of one corner and of the opposite one, which is greater.
            sphere: X Y Z of the center, and the radius.
            plane: A B C D: all with A x + B y + C z >= D.
            color: R G B in [0, 1], and by how much each may differ.
            all_of: Names of regions: what lies in all of them.
            any_of: Names of regions: what lies in any of them.
            none_of: Name of a region: what lies outside of it.
            grow: Then take in all splats within this distance.
            shrink: Then leave out all splats within this distance of the outside.
            largest: Then keep the largest piece.
            show: Name of a region to draw again and describe.
            delete: Name of a region to remove.
        """
        from restage.scenes.stage import find_scene

        folder = find_scene(run)
        if delete:
            _delete(folder, delete)
            return
        ways: dict[str, Any] = {
            "words": words,
            "clicks": click or point,
            "box": box,
            "lasso": lasso,
            "masks": masks,
            "boxes": boxes,
            "inside": inside,
            "sphere": sphere,
            "plane": plane,
            "color": color,
            "and": all_of,
            "or": any_of,
            "not": none_of,
        }
        chosen = [way for way, value in ways.items() if value]
        only_with = {
            "caption": (caption, ["words"]),
            "segmenter": (segmenter, ["words"]),
            "not-click": (not_click, ["clicks"]),
            "not-point": (not_point, ["clicks"]),
            "to-object": (to_object, ["box", "lasso"]),
            "grow": (grow is not None, list(ways)),
            "shrink": (shrink is not None, list(ways)),
            "largest": (largest, list(ways)),
        }
        for option, (is_given, needed) in only_with.items():
            if is_given and not set(needed) & set(chosen):
                way = " or ".join(needed) if len(needed) < len(ways) else "a way to make a region"
                raise InputError(f"--{option} goes with {way}")
        if show:
            _show(folder, show)
            return
        if not chosen and not name:
            _list(folder)
            return
        if len(chosen) != 1:
            raise InputError(f"give one way to make a region, got {', '.join(chosen) or 'none'}")
        name = name or (words.lower().split()[-1] if words else "")
        if not name:
            raise InputError("give the region a name: --name NAME")
        from restage.regions import space
        from restage.regions.files import region_path
        from restage.regions.given import region_of_boxes, region_of_masks
        from restage.regions.making import Click, RegionMaker
        from restage.regions.region import combine
        from restage.regions.region import grow as grow_by
        from restage.regions.region import largest as largest_piece
        from restage.regions.region import shrink as shrink_by
        from restage.regions.segmenters import open_segmenter

        region_path(folder, name)  # refused before what may take minutes
        maker = RegionMaker(folder)
        splats, capture, given = maker.splats, maker.capture, ways[chosen[0]]
        makers: dict[str, Callable[[], Any]] = {
            "words": lambda: maker.by_words(
                words, caption=caption, segmenter=open_segmenter(segmenter) if segmenter else None
            ),
            "clicks": lambda: maker.by_clicks(
                [Click(*place) for place in click],
                points=point,
                not_clicks=[Click(*place) for place in not_click],
                not_points=not_point,
            ),
            "box": lambda: maker.by_outline(given[0], _corners(*given[1:]), to_object=to_object),
            "lasso": lambda: maker.by_outline(given[0], _outline(given[1:]), to_object=to_object),
            "masks": lambda: region_of_masks(given, capture, splats),
            "boxes": lambda: region_of_boxes(given, capture, splats),
            "inside": lambda: space.region_in_box(splats, given[:3], given[3:]),
            "sphere": lambda: space.region_in_ball(splats, given[:3], given[3]),
            "plane": lambda: space.region_beyond_plane(splats, given[:3], given[3]),
            "color": lambda: space.region_of_color(splats, given[:3], given[3]),
            "and": lambda: combine("and", *map(maker.load, given)),
            "or": lambda: combine("or", *map(maker.load, given)),
            "not": lambda: combine("not", maker.load(given)),
        }
        made = makers[chosen[0]]()
        for distance, change in ((grow, grow_by), (shrink, shrink_by)):
            if distance is not None:
                made = change(made, splats, distance)
        if largest:
            made = largest_piece(made, splats)
        if not bool(made.inside.any()):
            raise InputError("nothing is left: the region would hold no splat")
        path = maker.save(name, made)
        _describe(name, made, maker, path)

    return region


def _corners(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"expected a box as LEFT TOP RIGHT BOTTOM in [0, 1], got {left} {top} {right} {bottom}")
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _outline(texts: tuple[str, ...]) -> list[tuple[float, float]]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise InputError(f"expected a lasso as VIEW X1 Y1 X2 Y2 X3 Y3 ..., got {' '.join(texts)}") from None
    if len(numbers) % 2:
        raise InputError(f"expected an x and a y for each corner of the lasso, got {len(numbers)} numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _describe(name: str, region: Any, maker: Any, path: Path) -> None:
    from restage.regions.growing import spread_views
    from restage.regions.region import render_region

    views = spread_views(maker.capture)
    masks = render_region(region, maker.splats, maker.capture.cameras[views])
    shown = int((masks > 0.5).flatten(1).any(dim=1).sum())
    covered = float((masks > 0.5).float().mean())
    say(
        f"{name}: {int(region.inside.sum())} of {len(region.weights)} splats ({region.share:.1%}), seen in {shown} of "
        f"{len(views)} views, {covered:.1%} of their pixels"
    )
    if note := region.made.get("note"):
        say(f"note: {note}")
    say(f"region: {path}; look at {path.with_suffix('.png')}")


def _show(folder: Path, name: str) -> None:
    from restage.regions.making import RegionMaker, write_preview

    maker = RegionMaker(folder)
    region, path = maker.load(name), maker.find(name)
    write_preview(path.with_suffix(".png"), region, maker.splats, maker.capture)
    _describe(name, region, maker, path)


def _list(folder: Path) -> None:
    from restage.regions.files import list_regions

    records = list_regions(folder.resolve().parents[1], folder.resolve().name)
    for name, record in records.items():
        made = ", ".join(f"{key} {value}" for key, value in record.made.items() if isinstance(value, str | int | float))
        say(f"{name}: {record.share:.1%} of {record.num_splats} splats; {made}")
    if not records:
        say(f"{folder.name} has no regions; restage region --help tells how to make one")


def _delete(folder: Path, name: str) -> None:
    from restage.regions.files import delete_region

    delete_region(folder.resolve().parents[1], folder.resolve().name, name)
    say(f"removed: {name}")

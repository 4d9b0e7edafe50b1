"""Ways to make regions, in a scene of a ball on a disc: by clicks, outlines, place, color, and what segmenters find."""

from dataclasses import dataclass, replace

import pytest
import torch

from restage.records import InputError, MissingExtra
from restage.regions import segmenters
from restage.regions.growing import grow_from, load_graph, prepare_graph, save_graph, seeds_at, seeds_near
from restage.regions.making import Click, RegionMaker, outline_mask
from restage.regions.space import region_beyond_plane, region_in_ball, region_in_box, region_of_color
from restage.regions.words import region_by_segmenter
from restage.scenes.cameras import project_points


def iou(region, truth):
    return float((region.inside & truth).sum() / (region.inside | truth).sum())


@pytest.fixture
def maker(tiny_scene, tmp_path):
    tiny_scene.write(tmp_path / "scenes" / "tiny")
    return RegionMaker(tmp_path / "scenes" / "tiny")


def test_one_click_finds_the_ball_from_any_side(tiny_scene, maker):
    for view in ("view_0.png", "view_3", "5"):
        region = maker.by_clicks([Click(view, 0.5, 0.4)])
        assert iou(region, tiny_scene.is_ball) > 0.95
    assert region.made == {"by": "clicks", "clicks": [["5", 0.5, 0.4]]}
    assert iou(maker.by_clicks(points=[(0.0, 0.0, 0.75)]), tiny_scene.is_ball) > 0.95


def test_what_is_clicked_as_not_meant_stays_out(tiny_scene, maker):
    everything = maker.by_clicks(points=[(0.0, 0.0, 0.75), (0.8, 0.0, 0.0)])
    assert everything.share > 0.9
    ball = maker.by_clicks(points=[(0.0, 0.0, 0.75)], not_points=[(0.6, 0.0, 0.0)])
    assert iou(ball, tiny_scene.is_ball) > 0.95
    with pytest.raises(InputError, match="at least one splat to grow from"):
        maker.by_clicks(points=[(0.0, 0.0, 0.75)], not_points=[(0.0, 0.0, 0.75)])
    with pytest.raises(InputError, match="at least one click or point"):
        maker.by_clicks()
    with pytest.raises(InputError, match="tiny has no view 'view_9'"):
        maker.by_clicks([Click("view_9", 0.5, 0.5)])


def test_features_tell_apart_what_has_one_color(tiny_scene):
    gray = replace(tiny_scene.splats, sh=torch.zeros(200, 1, 3))
    features = torch.where(tiny_scene.is_ball, 1.0, -1.0)[:, None]
    found = []
    for given in (None, features):
        graph = prepare_graph(gray, tiny_scene.capture, given)
        found.append(grow_from(graph, seeds_near(gray, (0.0, 0.0, 0.75))).bool())
    assert bool((found[1] & tiny_scene.is_ball).sum() / (found[1] | tiny_scene.is_ball).sum() > 0.95)
    assert int((found[0] != tiny_scene.is_ball).sum()) > 20


def test_a_graph_is_kept_for_its_splats_alone(tiny_scene, tmp_path, maker):
    graph = maker.graph
    path = maker.folder / "regions" / ".graph-colors.npz"
    again = load_graph(path, tiny_scene.splats)
    assert again is not None and (again.bonds != graph.bonds).nnz == 0
    assert (again.background == graph.background).all()
    assert (
        load_graph(path, tiny_scene.recolored) is None and load_graph(tmp_path / "none.npz", tiny_scene.splats) is None
    )
    path.write_bytes(b"broken")
    assert load_graph(path, tiny_scene.splats) is None
    save_graph(path, graph)
    assert load_graph(path, tiny_scene.splats) is not None


def test_a_click_means_what_the_pixel_shows(tiny_scene):
    camera = tiny_scene.capture.cameras[0]
    assert tiny_scene.is_ball[seeds_at(tiny_scene.splats, camera, 0.5, 0.4)].float().mean() > 0.9
    with pytest.raises(InputError, match="shows no splat"):
        seeds_at(tiny_scene.splats, camera, 0.0, 0.0)
    with pytest.raises(InputError, match="as shares"):
        seeds_at(tiny_scene.splats, camera, 12.0, 3.0)


def test_an_outline_takes_what_its_view_shows_or_grows_it_to_the_thing(tiny_scene, maker):
    rows, columns = tiny_scene.truth_masks[0].nonzero(as_tuple=True)
    left, right = (float(edge) / 32 for edge in (columns.min() - 1, columns.max() + 2))
    top, bottom = (float(edge) / 32 for edge in (rows.min() - 1, rows.max() + 2))
    box = [(left, top), (right, top), (right, bottom), (left, bottom)]
    shown = maker.by_outline("view_0.png", box)
    pixels = project_points(tiny_scene.splats.means[shown.inside], tiny_scene.capture.cameras[0]).pixels / 32
    assert bool(((pixels > torch.tensor([left, top]) - 0.05) & (pixels < torch.tensor([right, bottom]) + 0.05)).all())
    assert 0.4 < iou(shown, tiny_scene.is_ball) < 0.9  # the disc behind it, too
    whole = maker.by_outline("view_0.png", box, to_object=True)
    assert iou(whole, tiny_scene.is_ball) > 0.9 and whole.made["to_object"]
    with pytest.raises(InputError, match="shows no splat within"):
        maker.by_outline("view_0.png", [(0.0, 0.0), (0.1, 0.0), (0.1, 0.05)])
    with pytest.raises(InputError, match="at least three corners"):
        maker.by_outline("view_0.png", box[:2])


def test_an_outline_holds_the_pixels_whose_centers_it_holds():
    mask = outline_mask([(0.25, 0.25), (0.75, 0.25), (0.75, 1.0), (0.25, 1.0)], 8, 4)
    expected = torch.zeros(4, 8)
    expected[1:, 2:6] = 1
    assert float((mask - expected).abs().sum()) <= 3  # OpenCV counts a border of half a pixel in
    assert bool((mask >= expected).all())


def test_place_and_color_choose_splats(tiny_scene):
    splats, ball = tiny_scene.splats, tiny_scene.is_ball
    assert torch.equal(region_in_box(splats, (-0.4, -0.4, 0.02), (0.4, 0.4, 1.0)).inside, ball)
    assert torch.equal(region_in_ball(splats, (0.0, 0.0, 0.4), 0.36).inside, ball)
    assert torch.equal(region_beyond_plane(splats, (0.0, 0.0, 1.0), 0.02).inside, ball)
    red = region_of_color(splats, (0.8, 0.2, 0.2), 0.1)
    assert torch.equal(red.inside, ball)
    assert red.made == {"by": "color", "color": [0.8, 0.2, 0.2], "tolerance": 0.1}
    for make in (
        lambda: region_in_box(splats, (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)),
        lambda: region_in_ball(splats, (9.0, 9.0, 9.0), 0.1),
        lambda: region_beyond_plane(splats, (0.0, 0.0, 0.0), 0.1),
    ):
        with pytest.raises(InputError):
            make()


@dataclass
class Told:
    """A segmenter that hands out what it was given, but for one view, where it is wrong."""

    masks: torch.Tensor
    name: str = "told"
    reads_words: bool = False

    def segment(self, images, words):
        masks = self.masks.clone()
        masks[0] = 1 if masks.any() else 0
        return masks


def test_what_a_segmenter_finds_in_most_views_is_the_region(tiny_scene):
    train = list(tiny_scene.capture.train_indices)
    told = Told((tiny_scene.truth_masks[train] > 0).float())
    region = region_by_segmenter(tiny_scene.splats, tiny_scene.capture, "the ball", told)
    assert iou(region, tiny_scene.is_ball) > 0.7
    assert region.made["note"] == "the most conspicuous thing in the views; the words are only a label"
    assert (
        "note"
        not in region_by_segmenter(
            tiny_scene.splats, tiny_scene.capture, "the ball", replace(told, reads_words=True)
        ).made
    )
    with pytest.raises(InputError, match="told finds no 'the ball'"):
        region_by_segmenter(tiny_scene.splats, tiny_scene.capture, "the ball", Told(torch.zeros(6, 32, 32)))


def test_without_the_extra_words_on_photographs_name_it(maker, monkeypatch):
    monkeypatch.setattr(segmenters.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"restage\[segment\]"):
        maker.by_words("the ball")


def test_a_region_is_saved_with_its_picture(tiny_scene, maker):
    path = maker.save("ball", maker.by_clicks(points=[(0.0, 0.0, 0.75)]))
    assert path.with_suffix(".png").stat().st_size > 500
    assert iou(maker.load("ball"), tiny_scene.is_ball) > 0.95 and iou(maker.load(str(path)), tiny_scene.is_ball) > 0.95
    with pytest.raises(InputError, match="no region 'cube'; there are: ball"):
        maker.load("cube")


def test_a_scene_of_one_splat_has_regions_and_points_are_numbers(tiny_scene):
    one = tiny_scene.splats[:1]
    graph = prepare_graph(one, tiny_scene.capture)
    assert grow_from(graph, seeds_near(one, (0.0, 0.0, 0.0))).tolist() == [1.0]
    with pytest.raises(InputError, match="three finite numbers"):
        seeds_near(one, (float("nan"), 0.0, 0.0))


def test_a_view_is_known_by_its_name_before_its_number(tiny_scene, maker):
    names = tuple(f"{number}.png" for number in (7, 6, 5, 4, 3, 2, 1, 0))
    maker.capture = replace(maker.capture, file_names=names)
    assert maker._view("5") == 2 and maker._view("5.png") == 2

"""`restage region` from the shell: make, combine, list, show, delete, and what it refuses."""

import pytest

from restage.cli import run
from restage.regions.files import list_regions, read_region


@pytest.fixture
def folder(tiny_scene, tmp_path):
    tiny_scene.write(tmp_path / "scenes" / "tiny")
    return tmp_path


def test_regions_are_made_combined_listed_shown_and_removed(tiny_scene, folder, capsys):
    asked = str(folder / "scenes" / "tiny")
    assert run(["region", asked]) == 0 and "tiny has no regions" in capsys.readouterr().out
    assert run(["region", asked, "--click", "view_0.png", "0.5", "0.4", "--name", "ball"]) == 0
    assert "ball: " in capsys.readouterr().out
    assert run(["region", asked, "--plane", "0", "0", "-1", "-0.02", "--name", "disc"]) == 0
    assert run(["region", asked, "--or", "ball", "disc", "--name", "all"]) == 0
    assert run(["region", asked, "--not", "ball", "--shrink", "0.05", "--largest", "--name", "rest"]) == 0
    assert list(list_regions(folder, "tiny")) == ["all", "ball", "disc", "rest"]
    assert read_region(folder, "tiny", "all").share > 0.95
    ball, disc = (read_region(folder, "tiny", name).inside for name in ("ball", "disc"))
    assert float((ball == tiny_scene.is_ball).float().mean()) > 0.97 and bool((disc == ~tiny_scene.is_ball).all())
    capsys.readouterr()
    assert (
        run(["region", asked, "--show", "disc"]) == 0 and "disc: 120 of 200 splats (60.0%)" in capsys.readouterr().out
    )
    assert run(["region", asked, "--delete", "all"]) == 0
    assert run(["region", asked]) == 0
    assert "by plane" in capsys.readouterr().out and "all" not in list_regions(folder, "tiny")
    assert not (folder / "scenes" / "tiny" / "regions" / "all.png").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--sphere", "0", "0", "0", "1"], "give the region a name"),
        (["--name", "a"], "give one way to make a region"),
        (
            ["--sphere", "0", "0", "0", "1", "--and", "b", "--name", "a"],
            "one way to make a region, got sphere, and",
        ),
        (["--and", "b", "--name", "a"], "tiny has no region 'b'"),
        (["--box", "0", "0.5", "0", "0.2", "1", "--name", "a"], "expected a box as LEFT TOP"),
        (["--lasso", "0", "0.5", "0", "0.2", "--name", "a"], "an x and a y for each corner"),
        (["--lasso", "0", "x", "0", "--name", "a"], "expected a lasso as VIEW"),
        (["--delete", "b"], "tiny has no region 'b'"),
        (["--sphere", "0", "0", "0", "0.6", "--shrink", "9", "--name", "a"], "would hold no splat"),
        (["--grow", "0.1"], "--grow goes with a way to make a region"),
        (["--sphere", "0", "0", "0", "1", "--to-object", "--name", "a"], "--to-object goes with box or lasso"),
        (["--sphere", "0", "0", "0", "1", "--caption", "x", "--name", "a"], "--caption goes with words"),
        (["the bär"], "expected a region's name of letters"),
    ],
)
def test_what_makes_no_region_is_refused_in_one_line(folder, capsys, options, reason):
    assert run(["region", str(folder / "scenes" / "tiny"), *options]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_names_with_dots_keep_their_own_picture_and_a_broken_region_can_be_removed(folder, capsys):
    asked, regions = str(folder / "scenes" / "tiny"), folder / "scenes" / "tiny" / "regions"
    for name, offset in (("ball", "-0.3"), ("ball.v2", "-0.6")):
        assert run(["region", asked, "--plane", "0", "0", "-1", offset, "--name", name]) == 0
    before = (regions / "ball.png").read_bytes()
    (regions / "ball.v2.png").unlink()
    assert run(["region", asked, "--show", "ball.v2"]) == 0
    assert (regions / "ball.v2.png").is_file() and (regions / "ball.png").read_bytes() == before
    (regions / "ball.v2.npz").write_bytes(b"broken")
    assert run(["region", asked, "--delete", "ball.v2"]) == 0
    assert sorted(path.name for path in regions.glob("ball*")) == ["ball.npz", "ball.png"]

"""`benchmarks.removal` from start to end at a tiny setting."""

import json

import pytest

from benchmarks import removal
from restage.scenes.config import FitConfig

TINY = FitConfig(num_splats=400, steps=30)


def test_a_stopped_benchmark_goes_on_and_says_how_far_removal_gets(tmp_path, capsys, monkeypatch):
    def stopped(*given, **named):
        raise KeyboardInterrupt

    settings = {"num_scenes": 1, "seed": 7, "size": 32, "num_before": 0, "fit": TINY}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(removal, "Remove", stopped)
        removal.main(tmp_path, **settings)
    before = json.loads((tmp_path / "removal-000-32.json").read_text())
    assert set(before) == {"fit_error", "delete"}
    removal.main(tmp_path, **settings)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["delete_progress"] == pytest.approx(before["delete"], abs=1e-4)
    assert figures["remove_progress"] > figures["delete_progress"]
    assert figures["ceiling_progress"] > figures["remove_progress"]
    share = figures["remove_progress"] / figures["ceiling_progress"]
    assert figures["remove_share_of_ceiling"] == pytest.approx(share, abs=1e-3) and figures["scenes"] == 1
    assert "remove_progress_before" not in figures
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        f"removal-000-{n}" for n in ("delete", "remove", "ceiling")
    }

"""A clip that is edited through a server is what the editor makes of it in this process."""

from pathlib import Path

import pytest
import torch

from restage.clips.config import ClipOptions
from restage.clips.films import write_film
from restage.edit.clips.carried import Carried
from restage.edit.clips.stage import ClipChoice, open_clip_edit
from restage.edit.pictures import read_image
from restage.recipes import take_clip
from restage.records import EditRequest, InputError, read_json
from restage.run.folder import open_run
from restage.run.layout import ANSWERS
from restage.run.reading import EditRecord
from tests.serve.conftest import Running

REQUEST = EditRequest(instruction="turn it to night", source_caption="", target_caption="")


def edited(run: Path, clip: Path, editor: str, settings: Carried) -> Path:
    choice = ClipChoice(editor=editor, settings=settings)
    opened = open_clip_edit(open_run(run), clip, request=REQUEST, choice=choice)
    list(opened.steps)
    return opened.folder


def test_a_clip_is_edited_through_a_server_as_in_this_process(
    grade: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", grade.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    frames = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(1)).repeat(5, 1, 1, 1)
    write_film(tmp_path / "film.mp4", frames * torch.linspace(0.6, 1, 5).reshape(-1, 1, 1, 1), frames_per_s=5.0)
    *_, last = take_clip(tmp_path / "film.mp4", tmp_path / "run", ClipOptions())
    settings = Carried(window=3, overlap=1)
    served, own = (edited(tmp_path / "run", Path(last.note), name, settings) for name in ("endpoint", "grade"))
    record = read_json(served / "record.json", EditRecord)
    assert record.status == "done" and record.editor == "endpoint" and not record.reason
    for path in sorted((own / "frames").iterdir()):
        found, expected = (read_image(folder / "frames" / path.name) for folder in (served, own))
        assert float((found - expected).abs().max()) <= 2 / 255  # pictures are sent on the levels of a file
    assert any((tmp_path / "run" / ANSWERS).iterdir())  # so that nothing is asked, or paid, twice


def test_a_server_that_is_gone_is_one_line_and_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    write_film(tmp_path / "film.mp4", torch.rand(2, 3, 20, 30), frames_per_s=5.0)
    *_, last = take_clip(tmp_path / "film.mp4", tmp_path / "run", ClipOptions())
    with pytest.raises(InputError) as told:
        edited(tmp_path / "run", Path(last.note), "endpoint", Carried())
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "run" / "edit").rglob("record.json"))

"""A run in one file: packed the same twice, unpacked with care, and checked by whoever gets it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from restage.audit.bundle import BundleConfig, open_bundle, pack_bundle
from restage.cli import run as restage
from restage.records import InputError, read_json
from tests.audit.sealed_run import write_sealed_run

PICTURE = "run/edit/ball/blue/restage-edit_model/0/held_out/view_0.png"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_sealed_run(tmp_path / "run")
    (run / "train").mkdir()
    (run / "train" / "model.safetensors").write_bytes(bytes(1000))
    (run / "train" / "state.pt").write_bytes(bytes(1000))
    return run


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    list(pack_bundle(run, tmp_path / "run.zip", BundleConfig()))
    return tmp_path / "run.zip"


def rewrite(bundle: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """A copy of a bundle in which each entry is what `change` makes of it; None drops it."""
    other = bundle.with_name("other.zip")
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            changed = change(name, source.read(name))
            if changed is not None:
                target.writestr(*changed)
    return other


def findings(bundle: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        restage(["verify", str(bundle), "--fast"])
    assert stopped.value.code == 1
    return capsys.readouterr().out


def test_bundle_of_a_run_is_checked_and_says_its_hash(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["verify", str(bundle), "--fast"]) == 0
    out = capsys.readouterr().out
    assert "bundle sha256 " in out and "nothing found in 9 records" in out and "not in the bundle: 1 files" in out


def test_same_run_gives_the_same_bytes(run: Path, bundle: Path, tmp_path: Path) -> None:
    list(pack_bundle(run, tmp_path / "again.zip", BundleConfig()))
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_weights_are_left_out_unless_they_are_asked_for_and_states_always(run: Path, bundle: Path) -> None:
    list(pack_bundle(run, run.parent / "all.zip", BundleConfig(leave_out=())))
    names = [set(zipfile.ZipFile(path).namelist()) for path in (bundle, run.parent / "all.zip")]
    assert "run/train/model.safetensors" not in names[0] and "run/train/model.safetensors" in names[1]
    assert not any("state.pt" in name for name in names[0] | names[1])


def test_picture_swapped_in_a_bundle_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rewrite(bundle, lambda name, content: (name, b"x" * len(content) if name == PICTURE else content))
    assert "changed (1)" in (out := findings(other, capsys)) and PICTURE.removeprefix("run/") in out


def test_file_taken_out_of_a_bundle_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rewrite(bundle, lambda name, content: None if name == PICTURE else (name, content))
    assert "missing (1)" in (out := findings(other, capsys)) and PICTURE.removeprefix("run/") in out


def test_file_put_into_a_bundle_is_named_and_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("run/../../evil", "x")
        archive.writestr("run/extra.txt", "x")
    with open_bundle(bundle) as opened:
        assert {finding.file for finding in opened.findings} == {"../../evil", "extra.txt"}
        assert not (opened.run / "extra.txt").exists() and not (opened.run.parent.parent / "evil").exists()
        folder = opened.run
    assert not folder.exists()


def test_list_of_files_that_was_edited_is_found(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content.replace(b'"restage": "', b'"restage": "9') if name == "bundle.json" else content

    assert "bundle.json" in findings(rewrite(bundle, change), capsys)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_what_is_no_bundle_is_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    assert restage(["verify", str(tmp_path / "x.zip")]) == 2
    assert restage(["verify", str(tmp_path / "none.zip")]) == 2


def test_zip_of_something_else_is_bad_input(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("bundle.json", '{"files": {"a": 3}}')
    with pytest.raises(InputError, match="not a bundle"), open_bundle(tmp_path / "x.zip"):
        pass


def test_bundle_over_an_existing_file_is_refused(run: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        list(pack_bundle(run, bundle, BundleConfig()))
    assert read_json(run / "run.json")["status"] == "done"

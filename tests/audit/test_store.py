"""A run that somebody sent does not choose which folder is repaired, or which server is connected to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restage.audit.bundle import BundleConfig, pack_bundle
from restage.cli import run as restage
from restage.records import write_json
from tests.audit.sealed_run import write_sealed_run


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "shard-00000.tar").write_bytes(b"no tar, and somebody else's")
    (folder / "shard-00000.done").write_bytes(b"{}")
    return folder


@pytest.fixture
def run(tmp_path: Path, outside: Path) -> Path:
    run = write_sealed_run(tmp_path / "run")
    (run / "pairs").mkdir()
    write_json(run / "pairs" / "store.json", {"url": f"file://{outside}"})
    return run


def test_repair_touches_no_folder_that_the_run_alone_names(run: Path, outside: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    assert restage(["verify", str(run), "--fast", "--repair"]) == 2
    assert "--store" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def test_a_store_is_looked_at_when_it_is_named(run: Path, outside: Path, capsys) -> None:
    assert restage(["verify", str(run), "--fast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"] == [] and str(outside) in found["not_checked"][0]["reason"]
    with pytest.raises(SystemExit, match="1"):
        restage(["verify", str(run), "--fast", "--json", "--store", f"file://{outside}"])
    assert json.loads(capsys.readouterr().out)["stages"][0]["findings"]


def test_a_bundle_connects_to_nothing(run: Path, tmp_path: Path, capsys) -> None:
    write_json(run / "pairs" / "store.json", {"url": "http://127.0.0.1:9/pairs"})
    list(pack_bundle(run, tmp_path / "bundle.zip", BundleConfig()))
    assert restage(["verify", str(tmp_path / "bundle.zip"), "--fast"]) == 0
    assert "not checked: the pairs of" in capsys.readouterr().out

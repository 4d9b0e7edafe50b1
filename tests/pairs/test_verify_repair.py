import contextlib
import io
import json
from pathlib import Path

import pytest

from restage.cli import run as restage
from restage.pairs.files import open_files, point_to_store
from restage.pairs.score import add_left_out, read_left_out
from restage.pairs.store import done_indices, read_pairs
from restage.pairs.verify.repair import repair_pairs, write_sheets
from restage.records import InputError
from tests.pairs.faulty import PatternClip, make_pair, verify_pairs, write_set
from tests.pairs.test_verify import black, flip, identical, swapped
from tests.pairs.tiny import WordlessClip, open_run, run_pairs, tiny_config, tiny_model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_bad_shard_is_made_again_bit_for_bit(tmp_path):
    run, backbone = open_run(tmp_path / "run"), tiny_model()
    list(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    folder = run.path / "pairs"
    before = contents(folder)
    flip(folder / "shard-00001.tar", 700)
    (folder / "shard-00002.parquet").unlink()
    repaired = repair_pairs(folder, verify_pairs(folder, fast=True))
    assert repaired.shards == (1, 2) and repaired.needs_stage and done_indices(folder) == [0]
    list(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    after = contents(folder)
    assert {name: after[name] for name in before if name != "campaign.json"} == {
        name: content for name, content in before.items() if name != "campaign.json"
    }
    assert verify_pairs(folder, fast=True) == ()


def test_what_was_right_keeps_its_bytes_and_nothing_is_deleted(tmp_path):
    folder = write_set(tmp_path / "run")
    before = contents(folder)
    flip(folder / "shard-00001.tar", 700)
    flipped = (folder / "shard-00001.tar").read_bytes()
    (folder / "notes.txt").write_text("mine")
    repaired = repair_pairs(folder, verify_pairs(folder, fast=True))
    kept = contents(folder)
    assert all(before[name] == content for name, content in kept.items())
    room = Path(repaired.quarantine)
    assert (room / "shard-00001.tar").read_bytes() == flipped and (room / "notes.txt").read_text() == "mine"
    assert {"shard-00001.done", "shard-00001.parquet", "stage.json", "findings.json"} <= set(contents(room))
    assert set(kept) | set(contents(room)) >= set(before)
    assert verify_pairs(folder, fast=True) == ()


def test_bad_pairs_are_left_out_and_the_shards_stay(tmp_path):
    folder = write_set(tmp_path / "run", {3: swapped, 12: black, 20: identical})
    before = contents(folder)
    repaired = repair_pairs(folder, verify_pairs(folder, clip=PatternClip()))
    assert set(repaired.pairs) == {make_pair(number).id for number in (3, 12, 20)} and not repaired.needs_stage
    after = contents(folder)
    assert [name for name in after if before.get(name) != after[name]] == ["left-out-0001.json", "manifest.parquet"]
    assert not set(repaired.pairs) & {pair.id for pair in read_pairs(folder)}
    assert verify_pairs(folder, clip=PatternClip()) == ()


def test_a_second_repair_adds_a_version_of_the_list(tmp_path):
    files = open_files(tmp_path)
    assert add_left_out(files, {"pair-a": "black"}) == "left-out-0001.json"
    assert add_left_out(files, {"pair-b": "swapped"}) == "left-out-0002.json"
    assert read_left_out(files) == {"pair-a": "black", "pair-b": "swapped"}
    assert json.loads(files.read("left-out-0001.json"))["pairs"] == {"pair-a": "black"}


def test_a_list_that_cannot_be_read_is_not_passed_over(tmp_path):
    (tmp_path / "left-out-0001.json").write_text("[")
    with pytest.raises(InputError, match="left-out-0001"):
        read_left_out(open_files(tmp_path))


def test_a_damaged_list_moves_away(tmp_path):
    folder = write_set(tmp_path / "run", {3: swapped})
    repair_pairs(folder, verify_pairs(folder, clip=PatternClip()))
    flip(folder / "left-out-0001.json", 5)
    repair_pairs(folder, verify_pairs(folder, fast=True))
    assert not (folder / "left-out-0001.json").exists()
    repair_pairs(folder, verify_pairs(folder, clip=PatternClip()))
    assert verify_pairs(folder, clip=PatternClip()) == ()


def test_a_stale_manifest_is_written_anew(tmp_path):
    folder = write_set(tmp_path / "run")
    before = contents(folder)
    flip(folder / "manifest.parquet", 200)
    assert repair_pairs(folder, verify_pairs(folder, fast=True)).rebuilt == ("manifest.parquet",)
    assert contents(folder) == before


def test_there_is_a_sheet_for_each_reason(tmp_path):
    folder = write_set(tmp_path / "run", {3: swapped, 12: black, 13: black})
    findings = verify_pairs(folder, clip=PatternClip())
    sheets = write_sheets(open_files(folder), findings, tmp_path / "sheets")
    assert sorted(path.name for path in sheets) == ["black.png", "swapped.png"]
    write_sheets(open_files(folder), [], tmp_path / "sheets")
    assert not list((tmp_path / "sheets").iterdir())


def command(*arguments) -> tuple[int, str, str]:
    """Exit code and both streams of a command line, run in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = restage([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(str(end.code))
    return code, out.getvalue(), errors.getvalue()


def test_the_command_says_what_it_found_and_exits_with_1(tmp_path):
    folder = write_set(tmp_path / "run")
    code, out, _ = command("verify", tmp_path / "run", "--fast")
    assert code == 0 and "nothing found in 24 pairs (21 accepted) in 3 shards" in out
    flip(folder / "shard-00001.tar", 700)
    code, out, _ = command("verify", tmp_path / "run", "--fast", "--json")
    assert code == 1 and [item["file"] for item in json.loads(out)["stages"][0]["findings"]] == ["shard-00001.tar"]
    code, out, _ = command("verify", folder, "--fast", "--repair")
    assert code == 1 and "taken out: 1 shards: 1" in out and done_indices(folder) == [0, 2]


@pytest.mark.parametrize("name", ["plan.json", "rule.json"])
def test_the_command_names_a_missing_record_once_and_json_too(tmp_path, name):
    run = open_run(tmp_path / "run")
    list(run_pairs(run, tiny_config(), tiny_model(), WordlessClip()))
    run.close("done")
    (run.path / "pairs" / name).unlink()
    code, out, _ = command("verify", run.path, "--fast")
    assert code == 1 and out.count(name) == 1
    assert f"  pairs/{name}: shards were made with it; run pairs again to write it\n" in out
    found = json.loads(command("verify", run.path, "--fast", "--json")[1])
    files = [finding["file"] for part in ("records", "stages") for one in found[part] for finding in one["findings"]]
    assert files == [f"pairs/{name}"]
    code, out, _ = command("verify", run.path / "pairs", "--fast")
    assert code == 1 and f"  {name}: shards were made with it" in out


def test_the_command_refuses_what_holds_no_pairs(tmp_path):
    code, _, errors = command("verify", tmp_path)
    assert code == 2 and "holds no image pairs" in errors


def test_repair_at_a_url_moves_what_is_bad(tmp_path):
    clean = write_set(tmp_path / "run")
    files = open_files("memory://repaired")
    for path in clean.glob("shard-*"):
        files.write(path.name, path.read_bytes())
    files.write("shard-00001.tar", b"x" + files.read("shard-00001.tar")[1:])
    repaired = repair_pairs("memory://repaired", verify_pairs("memory://repaired", fast=True))
    assert repaired.shards == (1,) and done_indices("memory://repaired") == [0, 2]
    assert files.exists("quarantine/0001/shard-00001.tar")
    assert verify_pairs("memory://repaired", fast=True) == ()


def test_a_run_whose_shards_lie_in_a_store_is_checked_and_repaired(tmp_path):
    local, folder, url = write_set(tmp_path / "run"), tmp_path / "other" / "pairs", "memory://pointed-to"
    files = open_files(url)
    for path in local.glob("shard-*"):
        files.write(path.name, path.read_bytes())
    folder.mkdir(parents=True)
    point_to_store(folder, url)
    for name in ("stage.json", "manifest.parquet"):
        (folder / name).write_bytes((local / name).read_bytes())
    assert verify_pairs(folder, clip=PatternClip(), store=url) == ()
    files.write("shard-00002.parquet", files.read("shard-00002.parquet")[:-7])
    assert [(found.reason, found.file) for found in verify_pairs(folder, fast=True, store=url)] == [
        ("torn", "shard-00002.parquet")
    ]
    repaired = repair_pairs(folder, verify_pairs(folder, fast=True, store=url), store=url)
    assert repaired.shards == (2,) and done_indices(files) == [0, 1]
    assert not (folder / "stage.json").exists() and files.exists("quarantine/0001/stage.json")
    assert verify_pairs(folder, fast=True, store=url) == ()

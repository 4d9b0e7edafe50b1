"""A run in one file: packed the same twice, unpacked with care, and checked by whoever gets it."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from restage import __version__
from restage.audit.bundle import BundleConfig, is_bundle, open_bundle, pack_bundle
from restage.cli import run as restage
from restage.records import InputError, file_sha256, has_right_seal, read_json, seal
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


def reseal(bundle: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a bundle whose list of files was changed and sealed anew, as a forger would."""

    def edit(name: str, content: bytes) -> tuple[str, bytes]:
        if name != "bundle.json":
            return name, content
        manifest = json.loads(content)
        change(manifest)
        return name, json.dumps(seal(manifest)).encode()

    return rewrite(bundle, edit)


@pytest.mark.parametrize("name", ["../escaped.txt", "a/../../escaped.txt", "/{folder}/escaped.txt"])
def test_a_listed_file_that_would_lie_outside_of_the_run_is_named_and_not_unpacked(bundle: Path, name: str) -> None:
    name = name.format(folder=bundle.parent)
    facts = {"sha256": hashlib.sha256(b"x").hexdigest(), "num_bytes": 1}
    other = reseal(bundle, lambda manifest: manifest["files"].update({name: facts}))
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr(f"run/{name}", "x")
    with open_bundle(other) as opened:
        (finding,) = opened.findings
        assert (finding.reason, finding.file) == ("changed", name) and "outside of the run" in finding.detail
        assert not [path for path in opened.run.parent.rglob("escaped.txt")]
    assert not (bundle.parent / "escaped.txt").exists()


def test_a_file_larger_than_listed_is_cut_a_byte_later_and_named(bundle: Path) -> None:
    other = rewrite(bundle, lambda name, content: (name, content + bytes(9999) if name == PICTURE else content))
    listed = len(zipfile.ZipFile(bundle).read(PICTURE))
    with open_bundle(other) as opened:
        (finding,) = opened.findings
        path = opened.run / PICTURE.removeprefix("run/")
        assert (finding.reason, finding.file) == ("changed", PICTURE.removeprefix("run/"))
        assert path.stat().st_size == listed + 1
        assert finding.detail.startswith(
            f"SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}, bundle.json"
        )


def test_a_large_file_is_unpacked_whole(run: Path, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(2 * (1 << 20) + 77)
    (run / "large.bin").write_bytes(content)
    list(pack_bundle(run, tmp_path / "large.zip", BundleConfig(leave_out=())))
    with open_bundle(tmp_path / "large.zip") as opened:
        assert opened.findings == [] and (opened.run / "large.bin").read_bytes() == content


def test_an_unreadable_file_is_named_and_the_others_are_unpacked(run: Path, tmp_path: Path) -> None:
    (run / "notes.bin").write_bytes(b"0123456789" * 50)
    (run / "zeros.png").write_bytes(b"stored as it is" * 50)
    list(pack_bundle(run, tmp_path / "run.zip", BundleConfig(leave_out=())))
    damaged = (tmp_path / "run.zip").read_bytes().replace(b"stored as it is", b"stored as it no", 1)
    (tmp_path / "run.zip").write_bytes(damaged)
    with open_bundle(tmp_path / "run.zip") as opened:
        (finding,) = opened.findings
        assert (finding.reason, finding.file) == ("changed", "zeros.png")
        assert finding.detail == "unreadable after 0 of 750 bytes"
        assert (opened.run / "notes.bin").read_bytes() == b"0123456789" * 50


def test_what_a_bundle_says_of_itself(run: Path, tmp_path: Path) -> None:
    (run / "pairs").mkdir()
    for name in ("pairs/shard-00000.tar", "pairs/shard-00000.done", "train/weights.pt", "train/cache/1/x"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(name.encode())
    for name in (".hidden", "scenes/.tmp.json", "verify/found.json", "pairs/verify/found.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    (run / "scenes" / "ball" / "fit_state.pt").write_text("x")
    (run / "link.txt").symlink_to(run / "run.json")
    target = run / "out.zip"
    steps = list(pack_bundle(run, target, BundleConfig(leave_out=("weights", "pairs"))))
    manifest = json.loads(zipfile.ZipFile(target).read("bundle.json"))
    assert has_right_seal(manifest, is_required=True)
    assert (manifest["run"], manifest["restage"]) == (read_json(run / "run.json")["id"], __version__)
    left_out = {
        name: {"sha256": file_sha256(run / name), "num_bytes": (run / name).stat().st_size, "part": part}
        for part, name in (
            ("pairs", "pairs/shard-00000.tar"),
            ("weights", "train/model.safetensors"),
            ("weights", "train/weights.pt"),
        )
    }
    assert manifest["left_out"] == left_out
    names = zipfile.ZipFile(target).namelist()
    assert (
        names == ["bundle.json", *(f"run/{name}" for name in manifest["files"])] == ["bundle.json", *sorted(names[1:])]
    )
    assert "run/pairs/shard-00000.done" in names and "run/run.json" in names
    unwanted = ("hidden", "tmp", "found.json", "fit_state", "link", "out.zip", "cache", "state.pt")
    assert not [name for name in names if any(word in name for word in unwanted)]
    name = "pairs/shard-00000.done"
    assert manifest["files"][name] == {"sha256": hashlib.sha256(name.encode()).hexdigest(), "num_bytes": len(name)}
    count = len(manifest["files"])
    assert {step.stage for step in steps} == {"bundle"} and {step.total for step in steps} == {2 * (count + 3)}
    assert steps[-1].done == steps[-1].total and steps[-1].note == (
        f"{count} files, {target.stat().st_size / 1e6:.1f} MB, sha256 {file_sha256(target)}"
    )
    with open_bundle(target) as opened:
        assert opened.findings == [] and opened.sha256 == file_sha256(target)
        assert opened.left_out == {name: facts["sha256"] for name, facts in left_out.items()}
        assert all((opened.run / name).read_bytes() == (run / name).read_bytes() for name in manifest["files"])


def test_entries_have_no_time_and_no_owner_and_are_packed_where_that_makes_them_smaller(bundle: Path) -> None:
    entries = {entry.filename: entry for entry in zipfile.ZipFile(bundle).infolist()}
    assert {entry.date_time for entry in entries.values()} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries.values()} == {0o644}
    for name, entry in entries.items():
        is_packed = Path(name).suffix in (".png", ".jpg", ".parquet")
        assert (entry.compress_type == zipfile.ZIP_STORED) == is_packed, name
    text = zipfile.ZipFile(bundle).read("bundle.json").decode()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_a_listed_file_that_is_not_there_is_missing(bundle: Path) -> None:
    name = PICTURE.removeprefix("run/")
    with open_bundle(rewrite(bundle, lambda n, c: None if n == PICTURE else (n, c))) as opened:
        assert [vars(finding) for finding in opened.findings] == [
            {"reason": "missing", "file": name, "detail": "named by bundle.json"}
        ]


@pytest.mark.parametrize("change", [{"seal": "0" * 64}, {"restage": "another"}])
def test_a_list_of_files_with_a_wrong_seal_is_a_finding(bundle: Path, change: dict) -> None:
    def edit(name: str, content: bytes) -> tuple[str, bytes]:
        return name, json.dumps({**json.loads(content), **change}).encode() if name == "bundle.json" else content

    with open_bundle(rewrite(bundle, edit)) as opened:
        (finding,) = opened.findings
    assert (finding.reason, finding.file) == ("edited record", "bundle.json") and "sealed" in finding.detail


def test_a_list_of_files_without_a_seal_is_a_finding(bundle: Path) -> None:
    def edit(name: str, content: bytes) -> tuple[str, bytes]:
        manifest = {key: value for key, value in json.loads(content).items() if key != "seal"}
        return name, json.dumps(manifest).encode()

    def only_manifest(name: str, content: bytes) -> tuple[str, bytes]:
        return edit(name, content) if name == "bundle.json" else (name, content)

    with open_bundle(rewrite(bundle, only_manifest)) as opened:
        assert [finding.reason for finding in opened.findings] == ["edited record"]


def test_a_bundle_larger_than_the_disk_is_refused_before_anything_is_written(bundle: Path, monkeypatch) -> None:
    total = sum(
        facts["num_bytes"] for facts in json.loads(zipfile.ZipFile(bundle).read("bundle.json"))["files"].values()
    )
    room = lambda share: lambda folder: SimpleNamespace(free=total / share)  # noqa: E731
    monkeypatch.setattr("restage.audit.bundle.shutil.disk_usage", room(0.89))
    with open_bundle(bundle) as opened:
        assert opened.findings == []
    monkeypatch.setattr("restage.audit.bundle.shutil.disk_usage", room(0.91))
    unpacked = []
    monkeypatch.setattr("restage.audit.bundle._unpack", lambda *args: unpacked.append(args))
    with pytest.raises(InputError, match=rf"holds {total / 1e9:.1f} GB"), open_bundle(bundle):
        pass
    assert not unpacked


@pytest.mark.parametrize("facts", ['{"sha256": "0"}', '{"num_bytes": 3}', "[]", '{"sha256": "0", "num_bytes": "x"}'])
@pytest.mark.parametrize("part", ["files", "left_out"])
def test_a_list_of_files_that_lacks_something_is_no_bundle(tmp_path: Path, facts: str, part: str) -> None:
    other = {"files": "left_out", "left_out": "files"}[part]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("bundle.json", f'{{"{part}": {{"a": {facts}}}, "{other}": {{}}}}')
    with pytest.raises(InputError, match="not a bundle of ours: bundle.json"), open_bundle(tmp_path / "x.zip"):
        pass


def test_sizes_cannot_hide_one_another(bundle: Path) -> None:
    other = reseal(bundle, lambda manifest: manifest["files"]["run.json"].update(num_bytes=-(10**15)))
    with pytest.raises(InputError, match=r"files\[...\]\.num_bytes: expected int >= 0"), open_bundle(other):
        pass


def test_a_bundle_that_unpacks_to_far_more_than_its_size_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "zeros.txt").write_bytes(bytes(30_000_000))
    list(pack_bundle(run, tmp_path / "bomb.zip", BundleConfig()))
    monkeypatch.setattr("restage.audit.bundle._unpack", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(InputError, match="unpack to more than 200 times its size"), open_bundle(tmp_path / "bomb.zip"):
        pass


@pytest.mark.parametrize("content", [b" " * 64_000_001, b"[" * 100_000, b"[" + b"9" * 5000 + b"]", b"[]", b"\xff"])
def test_a_list_of_files_that_is_endless_or_no_list_is_refused(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", content)
    message = r"x\.zip is not a bundle of ours: bundle\.json"
    with pytest.raises(InputError, match=message), open_bundle(tmp_path / "x.zip"):
        pass


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"external_attr": 0o120777 << 16}, "is a link or a device"),
        ({"external_attr": 0o010644 << 16}, "is a link or a device"),
        ({"flag_bits": 1}, "unreadable after 0 of "),
        ({"compress_type": 99}, "unreadable after 0 of "),
        ({"compress_type": zipfile.ZIP_DEFLATED}, "unreadable after 0 of "),
    ],
)
def test_an_entry_that_cannot_be_unpacked_is_named(bundle: Path, changes: dict, detail: str) -> None:
    with zipfile.ZipFile(bundle, "a") as archive:
        entry = archive.getinfo(PICTURE)
        for name, value in changes.items():
            setattr(entry, name, value)
        archive._didModify = True  # pyright: ignore[reportAttributeAccessIssue]  (writes the directory anew)
    with open_bundle(bundle) as opened:
        (finding,) = opened.findings
    assert (finding.reason, finding.file) == ("changed", PICTURE.removeprefix("run/")) and detail in finding.detail


@pytest.mark.parametrize("name", ["a" * 300, "run.json/below", ""])
def test_a_name_that_no_disk_takes_is_named(bundle: Path, name: str) -> None:
    facts = {"sha256": hashlib.sha256(b"x").hexdigest(), "num_bytes": 1}
    other = reseal(bundle, lambda manifest: manifest["files"].update({name: facts}))
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr(f"run/{name}", "x")
    with open_bundle(other) as opened:
        assert {(finding.reason, finding.file) for finding in opened.findings} == {("changed", name)}


def test_a_bundle_is_known_by_its_name() -> None:
    assert is_bundle("a/run.zip") and not is_bundle("a/run.zip/") and not is_bundle("a/run")


def test_a_bundle_is_made_of_a_run_and_is_a_zip(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json"):
        list(pack_bundle(tmp_path, tmp_path / "x.zip", BundleConfig()))
    with pytest.raises(InputError, match=r"ends in \.zip, got .*x\.tar"):
        list(pack_bundle(run, tmp_path / "x.tar", BundleConfig()))
    with pytest.raises(InputError, match=r"none\.zip does not exist"), open_bundle(tmp_path / "none.zip"):
        pass
    assert not list(tmp_path.glob("x.*"))

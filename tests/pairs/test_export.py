import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.pairs.config import ImportConfig
from restage.pairs.encoding import encode_pair
from restage.pairs.exchange import FORMATS
from restage.pairs.exchange.bring_in import import_folder
from restage.pairs.exchange.export import export_pairs
from restage.pairs.exchange.foreign import ForeignPair, PairFormat
from restage.pairs.files import open_files
from restage.pairs.score import add_left_out
from restage.pairs.store import read_pairs, read_rows
from restage.records import InputError, Progress, read_json
from restage.run.folder import RunFolder, open_run
from tests.pairs.faulty import NUM_SHARDS, PAIRS_PER_SHARD, make_pair, verify_pairs, write_set
from tests.pairs.test_verify_repair import command

EXPORTED = [name for name, found in FORMATS.items() if found.export and name != "tryon"]
"""Without the one for pairs that refer to a picture, which `test_references.py` exports."""
NUM_ACCEPTED = NUM_SHARDS * (PAIRS_PER_SHARD - 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "mine"
    write_set(path)
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for form in EXPORTED:
        list(export_pairs(str(run), folder / form, form))
    return {form: folder / form for form in EXPORTED}


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bring_in(folder: Path, out: Path, form, **options) -> tuple[RunFolder, str]:
    run = open_run(out)
    *_, last = import_folder(run, folder, ImportConfig(format=form, **options))
    return run, last.note


@pytest.mark.parametrize("form", EXPORTED)
def test_what_is_exported_comes_back(run, exported, tmp_path, form):
    back, note = bring_in(exported[form], tmp_path / "back", form, pairs_per_shard=5)
    pairs, originals = list(read_pairs(back.path / "pairs")), list(read_pairs(run / "pairs"))
    assert len(pairs) == len(originals) == NUM_ACCEPTED and note == f"{NUM_ACCEPTED} of {NUM_ACCEPTED} pairs taken"
    for pair, original in zip(pairs, originals, strict=True):
        texts = ("source", "target", "instruction", "kind")
        assert all(getattr(pair.prompt, name) == getattr(original.prompt, name) for name in texts)
        assert torch.equal(pair.mask, original.mask)
        for name in ("source", "edited"):
            found, expected = getattr(pair, name), getattr(original, name)
            if form == "instruct-pix2pix":  # JPEG
                assert (found - expected).abs().mean() < 2 / 255
            else:
                assert torch.equal(found, expected) and (pair.id, pair.prompt) == (original.id, original.prompt)
    assert verify_pairs(back.path / "pairs") == ()


@pytest.mark.parametrize("form", ["hf", "instruct-pix2pix"])
def test_scores_come_back(run, exported, tmp_path, form):
    back, _ = bring_in(exported[form], tmp_path / "back", form)
    accepted = [row for row in read_rows(run / "pairs") if row["accepted"]]
    for row, original in zip(read_rows(back.path / "pairs"), accepted, strict=True):
        for name in ("image_similarity", "direction_similarity", "source_text", "target_text"):
            assert row[name] == pytest.approx(original[name], abs=1e-9)
        assert row["seed"] == original["seed"]


def test_the_library_datasets_reads_what_is_written(run, exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(exported["hf"]), cache_dir=str(tmp_path))["train"]
    assert len(loaded) == NUM_ACCEPTED
    for item, pair in zip(loaded, read_pairs(run / "pairs"), strict=True):
        assert item["edit_prompt"] == pair.prompt.instruction and item["edited_prompt"] == pair.prompt.target
        picture = torch.from_numpy(np.array(item["edited_image"])).permute(2, 0, 1) / 255
        assert torch.equal(picture, pair.edited)


def test_what_the_library_datasets_writes_is_taken_in(tmp_path):
    datasets = pytest.importorskip("datasets")
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    columns = {
        "input_image": [picture] * 2,
        "edited_image": [picture.rotate(90), picture.rotate(180)],
        "source_prompt": ["a", "b"],
        "target_prompt": ["c", "d"],
        "instruction": ["turn it", "turn it round"],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("input_image", datasets.Image())
    (tmp_path / "data").mkdir()
    data.cast_column("edited_image", datasets.Image()).to_parquet(tmp_path / "data" / "train.parquet")
    back, note = bring_in(tmp_path / "data", tmp_path / "back", "hf")
    (first, second) = read_pairs(back.path / "pairs")
    assert (first.prompt.instruction, second.prompt.target) == ("turn it", "d") and first.mask.mean() == 1
    assert all(math.isnan(row["direction_similarity"]) and row["unscored"] for row in read_rows(back.path / "pairs"))
    assert verify_pairs(back.path / "pairs") == ()


def test_the_library_webdataset_reads_what_is_written(run, exported):
    webdataset = pytest.importorskip("webdataset")
    tars = sorted(str(path) for path in exported["webdataset"].glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb"))
    pairs = list(read_pairs(run / "pairs"))
    assert [sample["__key__"] for sample in samples] == [pair.id for pair in pairs]
    assert np.allclose(samples[3]["edited.png"], pairs[3].edited.permute(1, 2, 0).numpy(), atol=1e-6)
    assert samples[3]["json"]["prompt"]["instruction"] == pairs[3].prompt.instruction


def test_tars_are_those_of_the_run_and_listed_in_an_index(run, exported):
    index = read_json(exported["webdataset"] / "index.json")
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == NUM_ACCEPTED
    for shard in index["shardlist"]:
        assert (exported["webdataset"] / shard["url"]).read_bytes() == (run / "pairs" / shard["url"]).read_bytes()


def test_pairs_that_are_left_out_are_not_exported(tmp_path):
    folder = write_set(tmp_path / "run")
    add_left_out(open_files(folder), {make_pair(2).id: "swapped"})
    for form in EXPORTED:
        list(export_pairs(str(tmp_path / "run"), tmp_path / form, form))
        back, _ = bring_in(tmp_path / form, tmp_path / f"back_{form}", form)
        pairs = list(read_pairs(back.path / "pairs"))
        assert len(pairs) == NUM_ACCEPTED - 1 and make_pair(2).prompt.source not in {
            pair.prompt.source for pair in pairs
        }
    assert "left out: swapped | 1 |" in (tmp_path / "hf" / "README.md").read_text()


def test_folders_are_as_the_loader_of_instruct_pix2pix_reads_them(exported, run):
    """Follows `EditDataset.__getitem__` of its public code."""
    folder = exported["instruct-pix2pix"]
    listed = json.loads((folder / "seeds.json").read_text())
    assert listed == sorted(listed) and len(listed) == NUM_ACCEPTED
    for (name, seeds), pair in zip(listed, read_pairs(run / "pairs"), strict=True):
        assert json.loads((folder / name / "prompt.json").read_text())["edit"] == pair.prompt.instruction
        for seed in seeds:
            for number in (0, 1):
                assert Image.open(folder / name / f"{seed}_{number}.jpg").size == (24, 24)
        lines = (folder / name / "metadata.jsonl").read_text().splitlines()
        assert [str(json.loads(line)["seed"]) for line in lines] == seeds


@pytest.mark.parametrize("form", EXPORTED)
def test_a_stopped_export_leaves_nothing_half_written_and_goes_on(run, exported, tmp_path, form):
    steps = export_pairs(str(run), tmp_path / "out", form)
    next(steps)
    del steps  # as a stop does
    assert not (tmp_path / "out").exists()
    list(export_pairs(str(run), tmp_path / "out", form))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    expected = {path.relative_to(exported[form]): path for path in exported[form].rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(
        expected
    )
    assert all((tmp_path / "out" / name).read_bytes() == path.read_bytes() for name, path in expected.items())


def test_a_format_is_a_record_and_a_line_in_the_menu(run, tmp_path, monkeypatch):
    def export(pair_set, folder):
        texts = [dict(pair.row) for index in pair_set.marks for pair in pair_set.pairs(index)]
        (folder / "texts.json").write_text(json.dumps([row["instruction"] for row in texts]))
        yield Progress(stage="export", done=1, total=1)

    def read(folder):
        for number, text in enumerate(read_json(folder / "texts.json")):
            picture = next(iter(read_pairs(run / "pairs")))
            source, edited = (encode_pair(picture).members[side][1] for side in range(2))
            texts = {"source_caption": "a", "target_caption": "b", "instruction": f"{text} {number}"}
            yield ForeignPair(where=str(number), source=source, edited=edited, mask=None, texts=texts, row={})

    form = PairFormat(description="Instructions, as a list.", read=read, export=export)
    monkeypatch.setitem(FORMATS, "texts", form)
    monkeypatch.setattr("restage.pairs.config.FORMAT_NAMES", (*FORMATS,))
    list(export_pairs(str(run), tmp_path / "texts", "texts"))
    assert "Instructions, as a list." in (tmp_path / "texts" / "README.md").read_text()
    brought, note = bring_in(tmp_path / "texts", tmp_path / "back", "texts")
    assert note.startswith(f"{NUM_ACCEPTED} of {NUM_ACCEPTED} pairs taken")
    assert len(list(read_pairs(brought.path / "pairs"))) == NUM_ACCEPTED


def test_an_export_is_not_written_over_another(run, exported, tmp_path):
    (progress,) = export_pairs(str(run), exported["hf"], "hf")
    assert progress.note == "already done"
    with pytest.raises(InputError, match="not this export"):
        list(export_pairs(str(run), exported["hf"], "webdataset"))
    write_set(tmp_path / "other", {1: lambda pair: pair})
    add_left_out(open_files(tmp_path / "other" / "pairs"), {make_pair(1).id: "black"})
    next(export_pairs(str(run), tmp_path / "out", "hf"))
    with pytest.raises(InputError, match="stopped export of other pairs"):
        list(export_pairs(str(tmp_path / "other"), tmp_path / "out", "hf"))


def test_the_card_counts_and_says_where_it_comes_from(exported):
    card = (exported["hf"] / "README.md").read_text()
    assert card.startswith("---\n") and "path: data/train-*.parquet" in card
    assert f"| add | {NUM_SHARDS * PAIRS_PER_SHARD} | {NUM_ACCEPTED} | 0.875 |" in card
    assert "| nothing changed | 3 |" in card and "grammar (21)" in card and "## Known limits" in card
    assert '"made_by": "tests"' in card and "**direction_similarity**" in card


def test_the_card_has_a_header_that_is_yaml(exported):
    yaml = pytest.importorskip("yaml")
    for folder in exported.values():
        header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
        assert header["size_categories"] == ["n<1K"] and header["task_categories"] == ["image-to-image"]


def test_the_commands_work(run, tmp_path):
    code, out, _ = command("export", run, "--format", "webdataset", "--out", tmp_path / "tars")
    assert code == 0 and (tmp_path / "tars" / "index.json").exists() and "webdataset:" in out
    code, out, _ = command("import", tmp_path / "tars", "--format", "webdataset", "--out", tmp_path / "back")
    assert code == 0 and f"{NUM_ACCEPTED} of {NUM_ACCEPTED} pairs taken" in out
    assert command("import", tmp_path / "tars", "--format", "webdataset", "--out", tmp_path / "back")[0] == 0
    code, _, errors = command("export", run, "--format", "hf")
    assert code == 2 and "--out" in errors
    code, _, errors = command("export", tmp_path, "--format", "hf", "--out", tmp_path / "nothing")
    assert code == 2 and not (tmp_path / "nothing").exists()


def test_a_tar_that_was_changed_is_not_exported(tmp_path):
    folder = write_set(tmp_path / "run")
    content = bytearray((folder / "shard-00001.tar").read_bytes())
    content[700] ^= 1
    (folder / "shard-00001.tar").write_bytes(content)
    with pytest.raises(InputError, match="shard-00001.tar"):
        list(export_pairs(str(tmp_path / "run"), tmp_path / "out", "hf"))
    assert not (tmp_path / "out").exists()


def test_an_export_of_pairs_that_were_changed_is_refused_and_leaves_nothing(tmp_path):
    write_set(tmp_path / "run")
    with (tmp_path / "run" / "pairs" / "shard-00001.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"shard-00001\.tar is missing or was changed"):
        list(export_pairs(str(tmp_path / "run"), tmp_path / "out", "hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "run" / "pairs" / "shard-00001.tar").unlink()
    (tmp_path / "run" / "pairs" / "shard-00001.tar").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        list(export_pairs(str(tmp_path / "run"), tmp_path / "out", "hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

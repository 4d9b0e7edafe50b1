import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from restage.pairs.config import ImportConfig
from restage.pairs.exchange.bring_in import import_folder
from restage.pairs.store import done_shards, read_pairs, read_rows
from restage.records import InputError
from restage.run.folder import open_run
from restage.train.examples import encode_examples
from tests.train.tiny import tiny_backbone


def picture(seed: int, size=(16, 16), form="PNG") -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def pair(number: int, **changes) -> dict:
    row = {
        "original_image": {"bytes": picture(2 * number), "path": None},
        "edited_image": {"bytes": picture(2 * number + 1), "path": None},
        "original_prompt": f"a thing {number}",
        "edited_prompt": f"another thing {number}",
        "edit_prompt": f"change it {number}",
    }
    return {**row, **changes}


def write(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def bring_in(folder: Path, out: Path, **options) -> tuple[Path, str]:
    *_, last = import_folder(open_run(out), folder, ImportConfig(**options))
    return out / "pairs", last.note


def reasons(folder: Path) -> list[str]:
    return [row["reason"] for row in read_rows(folder)]


def test_bad_pairs_are_listed_with_the_reason_and_good_ones_taken(tmp_path):
    rows = [
        pair(0),
        pair(1, edited_image={"bytes": b"no picture", "path": None}),
        pair(2, original_image=None),
        pair(3, edited_image={"bytes": picture(9, (24, 16)), "path": None}),
        pair(4, edit_prompt=" "),
        pair(5, **{name: {"bytes": picture(5, (24, 24)), "path": None} for name in ("original_image", "edited_image")}),
        pair(6, **{name: {"bytes": picture(5, (15, 16)), "path": None} for name in ("original_image", "edited_image")}),
        pair(0),
        pair(7),
    ]
    folder, note = bring_in(write(tmp_path / "data", rows), tmp_path / "run")
    assert reasons(folder) == [
        "",
        "the edited picture cannot be decoded",
        "the source picture is missing",
        "the pictures differ in size",
        "the instruction is missing",
        "another size than the first picture; --size brings all to one",
        "a side is not a multiple of 8 pixels; --size brings all to one size",
        "the same pair stands in the set before",
        "",
    ]
    assert note.startswith("2 of 9 pairs taken; 1 x ") and len(list(read_pairs(folder))) == 2


@pytest.mark.parametrize("column", ["edit_prompt", "original_image"])
def test_a_set_without_instruction_or_pictures_is_refused(tmp_path, column):
    rows = [{name: value for name, value in pair(0).items() if name != column}]
    with pytest.raises(InputError, match="rename what holds it") as error:
        bring_in(write(tmp_path / "data", rows), tmp_path / "run")
    assert column in str(error.value) and not (tmp_path / "run" / "pairs").exists()


def test_a_set_with_no_good_pair_is_refused(tmp_path):
    with pytest.raises(InputError, match="2 x the source picture is missing"):
        bring_in(write(tmp_path / "data", [pair(0, original_image=None)] * 2), tmp_path / "run")


def test_strict_refuses_a_set_with_one_bad_pair(tmp_path):
    rows = [pair(0), pair(1, edited_image={"bytes": b"no picture", "path": None})]
    with pytest.raises(InputError, match="row 1: the edited picture cannot be decoded"):
        bring_in(write(tmp_path / "data", rows), tmp_path / "run", strict=True)


def test_pictures_of_any_size_are_brought_to_one(tmp_path):
    rows = []
    for number, size in enumerate(((40, 24), (17, 90))):
        image = {"bytes": picture(number, size), "path": None}
        rows.append(pair(number, original_image=image, edited_image=image))
    folder, _ = bring_in(write(tmp_path / "data", rows), tmp_path / "run", size=16)
    assert {tuple(found.source.shape) for found in read_pairs(folder)} == {(3, 16, 16)}


def test_training_takes_what_was_imported(tmp_path):
    folder, _ = bring_in(write(tmp_path / "data", [pair(n) for n in range(4)]), tmp_path / "run")
    steps = encode_examples(read_pairs(folder), tiny_backbone(), tmp_path / "cache")
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert end.value.num_pairs == 4
            return


def test_a_stopped_import_ends_with_the_same_bytes(tmp_path):
    data = write(tmp_path / "data", [pair(n) for n in range(7)])
    whole, _ = bring_in(data, tmp_path / "whole", pairs_per_shard=2)
    steps = import_folder(open_run(tmp_path / "run"), data, ImportConfig(pairs_per_shard=2))
    next(steps)
    del steps  # as a stop does
    assert len(done_shards(tmp_path / "run" / "pairs")) == 1
    again, _ = bring_in(data, tmp_path / "run", pairs_per_shard=2)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == files


def test_another_set_is_not_mixed_in(tmp_path):
    folder, _ = bring_in(write(tmp_path / "data", [pair(0)]), tmp_path / "run")
    with pytest.raises(InputError, match="another"):
        bring_in(write(tmp_path / "other", [pair(1), pair(2)]), tmp_path / "run")
    assert len(list(read_pairs(folder))) == 1


def test_tars_of_others_are_taken_in(tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for number in range(3):
            texts = {"source_caption": "a", "target_caption": "b", "instruction": f"do {number}"}
            files = {
                "input.jpg": picture(number, form="JPEG"),
                "output.webp": picture(9 - number, form="WEBP"),
                "json": json.dumps(texts).encode(),
            }
            for name, content in files.items():
                member = tarfile.TarInfo(f"some/{number:03d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    folder, _ = bring_in(tmp_path, tmp_path / "run", format="webdataset")
    found = list(read_pairs(folder))
    assert [item.prompt.instruction for item in found] == ["do 0", "do 1", "do 2"]
    expected = np.asarray(Image.open(io.BytesIO(picture(1, form="JPEG"))))
    assert torch.equal((found[1].source * 255).round().permute(1, 2, 0).byte(), torch.from_numpy(expected.copy()))


def write_folders(folder: Path, prompt: dict) -> Path:
    (folder / "0000000").mkdir(parents=True)
    (folder / "0000000" / "prompt.json").write_text(json.dumps(prompt))
    for name in ("12_0.jpg", "12_1.jpg", "7_0.jpg", "7_1.jpg"):
        (folder / "0000000" / name).write_bytes(picture(len(name), form="JPEG"))
    (folder / "0000000" / "metadata.jsonl").write_text('{"seed": 7, "p2p_threshold": 0.5, "clip_sim_dir": 0.3}\n[bad\n')
    return folder


def test_folders_of_instruct_pix2pix_are_taken_in(tmp_path):
    prompt = {"input": "a photo", "edit": "make it old", "output": "an old photo", "url": ""}
    folder, _ = bring_in(write_folders(tmp_path / "data", prompt), tmp_path / "run", format="instruct-pix2pix")
    rows = read_rows(folder)
    assert [row["seed"] for row in rows] == [12, 7] and rows[1]["direction_similarity"] == 0.3
    assert rows[0]["target_caption"] == "an old photo" and rows[1]["self_share"] == 0.5


def test_folders_without_instruction_are_refused(tmp_path):
    with pytest.raises(InputError, match="'edit'"):
        folder = write_folders(tmp_path / "data", {"input": "a photo", "output": "an old photo"})
        bring_in(folder, tmp_path / "run", format="instruct-pix2pix")


@pytest.mark.parametrize("form", ["hf", "webdataset", "instruct-pix2pix"])
def test_a_folder_of_another_form_is_refused(tmp_path, form):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no"):
        bring_in(tmp_path / "data", tmp_path / "run", format=form)


@pytest.mark.parametrize("options", [{"size": 12}, {"size": 0}, {"pairs_per_shard": 0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(InputError):
        ImportConfig(**options)

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.clocks import peak_of_child
from restage.records import InputError, content_id
from restage.train import examples as module
from restage.train.batches import sample_edit_batch
from restage.train.chunks import FileRows, StoredRows, check_or_make
from restage.train.config import ExampleMix
from restage.train.examples import Examples, encode_examples
from tests.train.tiny import tiny_backbone, tiny_pair


def encode(pairs, folder: Path, **options) -> Examples:
    def finish():
        return (yield from encode_examples(pairs, tiny_backbone(), folder, **options))

    steps = finish()
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def make_files(folder: Path, sizes: list[int]):
    generator = torch.Generator().manual_seed(0)
    tensors = [{"a": torch.rand(n, 2, 3, generator=generator), "b": torch.arange(n)} for n in sizes]
    return tensors, [check_or_make(folder / f"{i}.safetensors", lambda t=t: t) for i, t in enumerate(tensors)]


@pytest.fixture(params=[True, False], ids=["preadv", "without preadv, as on Windows"])
def _reading(request, monkeypatch):
    if not request.param:
        monkeypatch.delattr("os.preadv", raising=False)


@pytest.mark.usefixtures("_reading")
@pytest.mark.parametrize("name", ["a", "b"])
def test_rows_of_files_are_those_of_the_segments_end_to_end(name: str, tmp_path: Path):
    tensors, files = make_files(tmp_path, [3, 1, 4])
    segments = [FileRows(0, 0, 2), FileRows(1, 0, 0), FileRows(2, 1, 3), FileRows(0, 2, 1), FileRows(1, 0, 1)]
    stored = StoredRows(name, files, segments)
    whole = torch.cat([tensors[file][name][first : first + count] for file, first, count in segments])
    assert len(stored) == len(whole) == 7
    rows = torch.tensor([6, 0, 3, 3, 5, 2, 1, 4])
    assert torch.equal(stored[rows], whole[rows])
    assert torch.equal(stored[rows.int()], whole[rows])


@pytest.mark.usefixtures("_reading")
def test_a_file_that_is_cut_or_gone_later_is_named_in_one_line(tmp_path: Path):
    _, files = make_files(tmp_path, [3])
    stored, path = StoredRows("a", files, [FileRows(0, 0, 3)]), files[0].path
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"0\.safetensors is no longer whole"):
        stored[torch.tensor([2])]
    path.unlink()
    with pytest.raises(InputError, match=r"0\.safetensors can no longer be read"):
        stored[torch.tensor([0])]


def with_ways_back():
    pairs = [
        tiny_pair(index, instruction=f"paint it {index % 3}", undo="" if index % 2 else f"undo {index}")
        for index in range(7)
    ]
    return [*pairs, tiny_pair(7, instruction="put it on the left", kind="add", undo="remove it")]


@pytest.mark.parametrize("embed_texts", [True, False])
def test_batches_read_from_files_are_those_of_tensors_in_memory(embed_texts: bool, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SIZE", 3)
    monkeypatch.setattr(module, "TEXT_CHUNK_SIZE", 4)
    stored = encode(with_ways_back(), tmp_path, embed_texts=embed_texts)
    fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
    read = {name: field[torch.arange(len(field))] for name, field in fields.items() if isinstance(field, StoredRows)}
    assert {"source", "edited", "masks"} <= read.keys()
    in_memory = dataclasses.replace(stored, **read)
    for step in range(6):
        batches = [
            sample_edit_batch(examples, ExampleMix(identity_share=0.3), batch_size=5, seed=2, step=step)
            for examples in (stored, in_memory)
        ]
        assert all(batch.reference is None for batch in batches)
        assert all(torch.equal(a, b) for a, b in zip(*(batch[:-1] for batch in batches), strict=True))


def test_the_id_is_the_content_id_of_the_files_and_prompts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SIZE", 3)
    pairs = with_ways_back()
    examples = encode(pairs, tmp_path)
    by_pictures = {}  # the first picture's latents tell the files apart
    for path in tmp_path.glob("latents-*"):
        by_pictures[load_file(path)["source"][0].numpy().tobytes()] = path.name
    firsts = examples.source[torch.tensor([0, 3, 6])]
    names = [by_pictures[latents.numpy().tobytes()] for latents in firsts]
    assert examples.id == content_id("examples", [names, [pair.prompt for pair in pairs]])


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path: Path, monkeypatch):
    def large_latents(pairs, is_mirrored, backbone):
        rows = len(pairs) + sum(is_mirrored)
        latents = torch.full((rows, 4, 128, 128), float(pairs[0].source[0, 0, 0])).half()
        return {"source": latents, "edited": latents.clone(), "masks": torch.zeros(rows, 128, 128).half()}

    monkeypatch.setattr(module, "CHUNK_SIZE", 2)
    monkeypatch.setattr(module, "_encode_images", large_latents)
    sizes, peaks = [], []
    for num_pairs in (16, 80):
        pairs, folder = [tiny_pair(index) for index in range(num_pairs)], tmp_path / str(num_pairs)

        def encode_and_draw(pairs=pairs, folder=folder) -> None:
            examples = encode(pairs, folder)
            for step in range(30):
                sample_edit_batch(examples, ExampleMix(), batch_size=4, seed=0, step=step)

        encode_and_draw()  # writes the files, and takes what is taken once, such as imports
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        peaks.append(peak_of_child(encode_and_draw))
    assert sizes[1] - sizes[0] > 35e6
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 3

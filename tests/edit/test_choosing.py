import json
from dataclasses import replace
from pathlib import Path

import pytest

from restage.cli import run
from restage.edit.choosing import choose_editor
from restage.edit.methods import Nothing, ReplaceOnce
from restage.edit.results import describe_change
from restage.edit.single import AUTO, EditChoice
from restage.recipes import edit_folder
from restage.records import EditRequest, InputError, Reference, write_json
from restage.run.folder import RunFolder
from restage.run.models import folder_sha256, models_in

CHOICE = EditChoice(editor=AUTO)


@pytest.fixture
def scene(tiny_scene, tmp_path, monkeypatch) -> Path:
    """A scene of photographs on a machine without a cache or an endpoint."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("OPENAI_BASE_URL", "RESTAGE_EDITOR_MODEL"):
        monkeypatch.delenv(name, raising=False)
    folder = RunFolder.open(tmp_path / "run", Nothing(), seed=0).path / "scenes" / "tiny"
    tiny_scene.write(folder)
    return folder


def ask(instruction: str) -> EditRequest:
    return EditRequest(instruction=instruction, source_caption="", target_caption="")


def put_into_cache(tmp_path: Path, class_name: str = "Flux2KleinPipeline") -> Path:
    folder = tmp_path / "hub" / "models--owner--klein" / "snapshots" / "a"
    folder.mkdir(parents=True)
    write_json(folder / "model_index.json", {"_class_name": class_name})
    return folder


def test_the_editor_follows_from_scene_machine_and_instruction(scene, tmp_path, monkeypatch):
    def chosen(instruction: str = "make the horse blue", **changes) -> str:
        return choose_editor(EditChoice(editor=AUTO, **changes), scene, ask(instruction)).choice.editor

    assert chosen("make it golden") == "grade"
    assert chosen(method="nothing") == "edit_model"
    folder = put_into_cache(tmp_path)
    assert chosen("make it golden") == "grade"  # without a GPU a pipeline would take hours
    on_gpu = choose_editor(EditChoice(editor=AUTO, device="cuda"), scene, ask("make the horse blue")).choice
    assert (on_gpu.editor, on_gpu.model) == ("pipeline", Path("owner/klein"))
    assert chosen(model=folder) == "pipeline"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert chosen(model=Path("some-model")) == "endpoint" and chosen(model=folder) == "pipeline"
    assert chosen("make it golden") == "grade"
    monkeypatch.setenv("RESTAGE_EDITOR_MODEL", "klein")
    assert chosen("make it golden") == "endpoint"
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionInstructPix2PixPipeline"})
    assert chosen(model=folder) == "instruct_pix2pix"
    assert chosen(model=folder, model_options=("steps=3",)) == "pipeline"
    for name in ("unet/config.json", "mix/attention/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    assert chosen(model=folder) == "try_on"
    (scene / "description.json").write_text("{}")
    assert chosen() == "edit_model"


def test_a_scene_that_the_shipped_model_made_from_words_is_for_the_shipped_editor(scene):
    made = {"num_splats": 1, "seconds": 1.0}
    for model, expected in ((folder_sha256(models_in().text_to_image), "edit_model"), ("another", "grade")):
        write_json(scene / "fit.json", made | {"generated_from": "a red cube", "config": {"model_sha256": model}})
        assert choose_editor(CHOICE, scene, ask("make it golden")).choice.editor == expected


def test_an_instruction_that_refers_to_a_picture_is_not_for_an_editor_that_looks_at_none(scene):
    request = replace(ask("make it golden"), references=(Reference(picture="a.png"),))
    with pytest.raises(InputError, match="choose one"):
        choose_editor(CHOICE, scene, request)


def test_where_no_editor_would_do_anything_the_error_lists_the_ways(scene, tmp_path):
    put_into_cache(tmp_path)
    with pytest.raises(InputError, match="'make the horse blue' on photographs.*cache: owner/klein.*--editor grade"):
        choose_editor(CHOICE, scene, ask("make the horse blue"))


def test_restage_edit_says_which_editor_it_took_and_how_much_changed(scene, capsys):
    choice = EditChoice(editor=AUTO, method="replace_once", settings=ReplaceOnce(num_steps=40))
    notes = [step.note for step in edit_folder(scene, [ask("make it golden")], choice)]
    assert notes[0].startswith("with the editor grade: the instruction names a color")
    assert "replace_once-grade" in notes[-1]
    assert describe_change(Path(notes[-1])).endswith("of the view that changed most")
    assert run(["edit", str(scene), "make the horse blue"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert (
        run(
            [
                "edit",
                str(scene),
                "make it golden",
                "--method",
                "replace_once",
                "--strength",
                "0",
                "--time-budget",
                "0.01",
            ]
        )
        == 0
    )
    assert "NOTHING CHANGED" in capsys.readouterr().out


def test_an_edit_that_changed_nothing_says_so_loudly(tmp_path):
    record = {"reason": "the scene did not change", "is_no_op": True, "changed_share": 0.0}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert describe_change(tmp_path).startswith("NOTHING CHANGED")
    record |= {"is_no_op": False, "changed_share": 0.25}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert describe_change(tmp_path) == "changed 25% of the view that changed most"

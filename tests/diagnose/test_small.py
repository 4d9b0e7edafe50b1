import json

import pytest

from restage.diagnose.parts import RunParts, read_settings
from restage.diagnose.small import SmallConfig, changed, read_changes
from restage.edit.methods import Restage
from restage.records import InputError, to_plain, write_json
from restage.scenes.config import FitConfig
from restage.train.config import TrainConfig


@pytest.mark.parametrize("config", [FitConfig(steps=7, time_budget_s=3.0), SmallConfig().train, SmallConfig().pairs])
def test_a_config_comes_back_from_its_record(config):
    assert read_settings(type(config), json.loads(json.dumps(to_plain(config)))) == config


def test_a_field_that_is_not_known_is_refused_by_name():
    with pytest.raises(InputError, match="TrainConfig has no colour; .*another version"):
        read_settings(TrainConfig, {"colour": 1})


def test_settings_change_by_their_paths_and_nothing_else_does():
    changes = {"edit.settings.restage.noise_levels": [0.35], "train.training.num_steps": 5}
    found = changed(SmallConfig(), changes)
    method = found.edit.settings["restage"]
    assert isinstance(method, Restage) and method.noise_levels == (0.35,)
    assert found.train.training.num_steps == 5
    assert found.pairs == SmallConfig().pairs
    assert changed(SmallConfig(), {}) == SmallConfig()


@pytest.mark.parametrize("path", ["train.steps", "nothing.at.all", "train.training.num_steps.more"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(InputError, match=f"no setting '{path}'"):
        changed(SmallConfig(), {path: 1})


def test_a_file_of_changes_has_to_be_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="expected object, got array"):
        read_changes(tmp_path / "a.json")


def test_records_that_a_diagnosis_reads_are_named_where_a_type_is_wrong(tmp_path):
    write_json(tmp_path / "run.json", {"id": "run-1", "seed": 0, "status": "done", "config": {"edit": {"settings": 3}}})
    with pytest.raises(InputError, match="settings: expected object, got int"):
        _ = RunParts.open(tmp_path, "restage").settings
    write_json(tmp_path / "train" / "edit_model.json", {"guidance": [1]})
    parts = RunParts.open(tmp_path, "restage")
    parts.__dict__["model"] = tmp_path / "train"
    with pytest.raises(InputError, match=r"edit_model.json: guidance: expected object, got array"):
        _ = parts.guidance

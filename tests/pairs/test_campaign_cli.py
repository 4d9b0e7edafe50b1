import pytest

from restage.cli import run
from restage.pairs.store import read_rows
from restage.records import read_json
from tests.pairs.test_campaign import contents
from tests.tiny_models import write_tiny_models

LENIENT = (
    *("--rule.min-image-similarity", "-1", "--rule.min-direction-similarity", "-1", "--rule.min-text-similarity", "-1"),
    *("--rule.min-change", "0", "--rule.min-mask-share", "0"),
)
SMALL = ("--pairs-per-shard", "2", "--generate.batch-size", "2", "--generate.sampler.num-steps", "2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return str(write_tiny_models(tmp_path_factory.mktemp("models")))


def make(path, models, *options):
    if not path.exists():
        assert run(["prompts", str(path), "--num-prompts", "6"]) == 0
    return run(["pairs", str(path), "--models", models, "--threads", "1", *SMALL, *options])


def test_the_command_line_makes_the_same_pairs_with_models_in_other_processes(models, tmp_path, capsys):
    assert make(tmp_path / "inline", models, *LENIENT) == 0
    assert make(tmp_path / "local", models, *LENIENT, "--engine", "local", "--workers", "1") == 0
    assert contents(tmp_path / "local" / "pairs") == contents(tmp_path / "inline" / "pairs")
    assert "estimate" in capsys.readouterr().out
    assert run(["show", str(tmp_path / "local")]) == 0
    assert "campaign ended" in capsys.readouterr().out


def test_a_rule_is_changed_from_the_command_line(models, tmp_path, capsys):
    run_path = tmp_path / "run"
    assert make(run_path, models, *LENIENT) == 0
    stricter = [*LENIENT[:1], "0.999", *LENIENT[2:]]
    assert make(run_path, models, *stricter) == 2 and "another config" in capsys.readouterr().err
    before = read_rows(run_path / "pairs")
    high = sorted(row["image_similarity"] for row in before)[-1]
    stricter[1] = str(high)
    assert make(run_path, models, *stricter, "--rejudge") == 0
    rows = read_rows(run_path / "pairs")
    assert [row["accepted"] for row in rows] == [row["image_similarity"] >= high for row in rows]
    assert read_json(run_path / "pairs" / "stage.json")["facts"]["num_accepted"] == sum(r["accepted"] for r in rows)


def test_estimate_only_says_what_the_rest_costs(models, tmp_path, capsys):
    assert make(tmp_path / "run", models, *LENIENT, "--estimate-only", "--cost-per-hour", "1.5") == 0
    out = capsys.readouterr().out
    assert "2 tasks, 4 pairs" in out and "cost" in out and not (tmp_path / "run" / "pairs" / "stage.json").exists()

import subprocess
import sys

import pytest

from restage.pairs.campaign import Estimate, Tally, bytes_text, seconds_text
from restage.pairs.generate import make_jobs
from restage.pairs.tasks import ModelMaker, ShardWork, TaskPlan
from tests.pairs.stand_in import StandIn, make_prompts, stand_in_config
from tests.work.tiny_tasks import report


def make_plan(count=20, **changes) -> TaskPlan:
    return TaskPlan(prompts=make_prompts(count), config=stand_in_config(**changes), run_seed=7, maker_id="m")


@pytest.mark.parametrize(("samples", "size"), [(1, 3), (3, 2), (2, 7), (5, 4)])
def test_tasks_cut_the_list_of_jobs_into_equal_parts(samples, size):
    plan = make_plan(7, samples_per_prompt=samples, pairs_per_shard=size)
    jobs = make_jobs(plan.prompts, plan.config.generate, samples_per_prompt=samples, run_seed=7)
    tasks = [plan[index] for index in range(len(plan))]
    assert [job.id for task in tasks for job in task.item] == [job.id for job in jobs]
    assert [len(task.item) for task in tasks] == [plan.num_jobs(index) for index in range(len(plan))]
    assert len({task.content for task in tasks}) == len(plan) and plan.num_pairs == len(jobs)
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_plan_depends_on_all_but_the_rule():
    ids = {make_plan(7).id, make_plan(8).id, make_plan(7, samples_per_prompt=2).id, make_plan(7, pairs_per_shard=5).id}
    assert len(ids) == 4 and make_plan(7, rule=type(make_plan().config.rule)()).id == make_plan(7).id


def test_pairs_load_diffusers_with_models_alone_and_local_workers_are_forked_with_it():
    program = "import sys, restage.pairs.tasks; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    config = stand_in_config()
    models = ModelMaker(text_to_image="t", clip="c", generate=config.generate, id="m")
    works = [
        ShardWork(folder="f", plan_id="p", rule=config.rule, batch_size=1, maker=maker) for maker in (models, StandIn())
    ]
    assert [work.modules for work in works] == [("restage.diffusion.backbone", "restage.diffusion.clip"), ()]


def test_an_estimate_says_tasks_time_room_and_cost():
    estimate = Estimate(
        num_tasks=100,
        num_pairs=1600,
        num_workers=15,
        seconds=7200.0,
        num_bytes=2 * 10**9,
        free_bytes=10**10,
        acceptance=0.5,
        cost_per_hour=2.0,
    )
    assert str(estimate) == (
        "100 tasks, 1600 pairs: 2 h 0 min with 15 workers, 2.0 GB of 10.0 GB free, 50% accepted, "
        "cost 60.00 (0.0750 an accepted pair)"
    )
    assert estimate.has_room


def test_times_and_sizes_are_said_as_people_say_them():
    assert [seconds_text(s) for s in (4.0, 600.0, 7800.0, 273600.0)] == ["4 s", "10 min", "2 h 10 min", "3 days 4 h"]
    assert [bytes_text(n) for n in (2_500_000, 3_400_000_000)] == ["2.5 MB", "3.4 GB"]


def test_a_tally_counts_yield_pace_by_device_and_failures_by_reason():
    tally, counts = Tally(num_tasks=4, num_pairs=16), {"num_pairs": 4, "num_accepted": 1, "num_bytes": 99}
    tally.add(report(0, device="cuda:0", seconds=2.0, facts={**counts, "num_accepted": 3}))
    tally.add(report(1, "found", facts=counts))
    tally.add(report(2, "failed", reason="OutOfMemoryError: 2 GB"))
    record = tally.record()
    assert (record["acceptance"], record["tasks"], record["pairs"]["made_now"]) == (0.5, {"all": 4, "done": 2}, 4)
    assert record["pairs_per_s_by_device"] == {"here cuda:0": 2.0}
    assert record["failures"] == {"OutOfMemoryError: 2 GB": 1} and "1 x OutOfMemoryError" in tally.note(1, None)

"""A server that fails, answers that are spoilt, runs that are killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from restage.prompts.answers import AnswerCache
from restage.prompts.stage import run_prompts
from restage.records import InputError
from restage.run.folder import RunFolder
from tests.fake_server import KEY, Plain, fail
from tests.prompts.fake_llm import answer_well
from tests.prompts.llm_runs import config_of, rejects_of, run_all


def cut(body):
    plain = answer_well(body)
    plain.cut_after = 100
    return plain


def half_json(body):
    return Plain(data=answer_well(body).data[:200])


FAULTS = {
    "busy": lambda body: fail(429, "slow down", Retry_After="0.01"),
    "busy until a date": lambda body: fail(429, "slow down", Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
    "server error": lambda body: fail(500),
    "bad gateway with a page": lambda body: Plain(502, {}, b"<html>oops</html>"),
    "a page in place of JSON": lambda body: Plain(200, {"content-type": "text/html"}, b"<html>log in</html>"),
    "cut connection": cut,
    "half JSON": half_json,
    "no choices": lambda body: Plain(data=b'{"id": "x", "choices": []}'),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_passes_is_tried_again_and_changes_nothing(server, tmp_path, fault):
    server.script = [fault, answer_well, fault, fault]
    _, pairs = run_all(tmp_path / "run", config_of(server, 8))
    server.script = []
    _, undisturbed = run_all(tmp_path / "other", config_of(server, 8))
    assert pairs == undisturbed and not rejects_of(tmp_path / "run")


def test_retry_after_is_waited_for(server, tmp_path):
    server.script = [lambda body: fail(429, "slow down", Retry_After="0.4")]
    start_s = time.monotonic()
    run_all(tmp_path / "run", config_of(server, 4))
    assert time.monotonic() - start_s >= 0.4 and len(server.bodies) == 2


def test_a_server_that_is_too_slow_is_asked_again(server, tmp_path):
    release = threading.Event()

    def hang(body):
        release.wait(5)
        return answer_well(body)

    server.script = [hang]
    run_all(tmp_path / "run", config_of(server, 4, limits={"timeout_s": 0.3}))
    release.set()
    assert len(server.bodies) == 2


def test_a_server_that_stays_down_is_one_line_and_leaves_no_file(server, tmp_path):
    server.default = lambda body: fail(503, f"down, {KEY}")
    with pytest.raises(InputError, match="no answer in 3 tries .*503.*same command goes on") as error:
        run_all(tmp_path / "run", config_of(server, 4, limits={"max_tries": 3}))
    assert KEY not in str(error.value)
    assert not (tmp_path / "run/prompts/prompts.jsonl").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: fail(401, f"Incorrect API key provided: {KEY}"), "does not accept the key of OPENAI_API_KEY"),
        (lambda body: fail(404, "no such model"), "refuses the request: 404 .*no such model"),
        (lambda body: fail(400, "context too long"), "refuses the request: 400"),
    ],
)
def test_what_cannot_get_better_is_not_tried_again(server, tmp_path, answer, message):
    server.default = answer
    with pytest.raises(InputError, match=message) as error:
        run_all(tmp_path / "run", config_of(server, 4))
    assert len(server.bodies) <= 3 and KEY not in str(error.value)


def test_an_account_without_quota_stops_with_what_is_there(server, tmp_path):
    server.script = [answer_well, lambda body: fail(429, "pay", code="insufficient_quota")]
    last, pairs = run_all(tmp_path / "run", config_of(server, 12))
    assert len(pairs) == 4 and "no quota left" in last.note


def start_child(server, folder: Path) -> int:
    """Run the stage in a child process; returns its id."""
    child = os.fork()
    if not child:
        try:
            list(run_prompts(RunFolder.open(folder, {}, seed=1), config_of(server, 24)))
        finally:
            os._exit(0)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_killed_run_goes_on_without_paying_again_and_says_what_was_lost(server, tmp_path):
    at_fourth, release = threading.Event(), threading.Event()

    def hang(body):
        at_fourth.set()
        release.wait(30)
        return answer_well(body)

    server.script = [answer_well, answer_well, answer_well, hang]
    child = start_child(server, tmp_path / "run")
    assert at_fourth.wait(60)
    kill(child)  # while the fourth answer is under way
    release.set()
    assert len(list((tmp_path / "run/prompts/llm").glob("*/*.json"))) == 3
    asked = len(server.bodies)
    run = RunFolder.open(tmp_path / "run", {}, seed=1)
    first, *_ = run_prompts(run, config_of(server, 24))
    assert "3 answers are kept" in first.note and "1 were under way" in first.note
    assert len(server.bodies) == asked + 3  # the fourth to the sixth
    run_all(tmp_path / "other", config_of(server, 24))
    one, two = ((tmp_path / name / "prompts/prompts.jsonl").read_bytes() for name in ("run", "other"))
    assert one == two
    cache = AnswerCache(tmp_path / "run/prompts/llm")
    assert cache.num_lost == 1 and cache.past.num_requests == 7


def test_kills_at_any_moment_cost_at_most_the_request_under_way(server, tmp_path):
    def dawdle(body):
        time.sleep(0.03)
        return answer_well(body)

    server.default = dawdle
    kills = 0
    for moment in range(8):
        child = start_child(server, tmp_path / "run")
        time.sleep(0.05 + 0.037 * moment)
        kill(child)
        kills += 1
    _, pairs = run_all(tmp_path / "run", config_of(server, 24))
    assert len(pairs) == 24 and 6 <= server.num_paid <= 6 + kills
    assert server.num_paid - 6 <= AnswerCache(tmp_path / "run/prompts/llm").num_lost
    _, undisturbed = run_all(tmp_path / "other", config_of(server, 24))
    assert pairs == undisturbed


def test_a_spoilt_answer_on_disk_is_asked_for_again(server, tmp_path):
    run_all(tmp_path / "a", config_of(server, 4))
    (path,) = (tmp_path / "a/prompts/llm").glob("*/*.json")
    path.write_bytes(path.read_bytes()[:50])
    _, pairs = run_all(tmp_path / "b", config_of(server, 4, llm={"cache": tmp_path / "a/prompts/llm"}))
    assert len(pairs) == 4 and server.num_paid == 2

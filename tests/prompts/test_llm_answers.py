"""What models and servers really send: read where it can be, and harmless where it cannot."""

import json
import time

import pytest

from restage.prompts.answers import AnswerCache, Reply
from restage.prompts.config import PromptsConfig
from restage.prompts.llm import Malformed, parse_items
from restage.prompts.llm_config import LlmConfig, find_access
from restage.records import InputError
from tests.fake_server import KEY, Plain, fail
from tests.prompts.fake_llm import answer_well, good_items, message
from tests.prompts.llm_runs import config_of, rejects_of, run_all
from tests.prompts.test_llm import item

ITEMS = [item(source=f"a red car {n}", target=f"a blue car {n}") for n in range(4)]
WHOLE = json.dumps({"pairs": ITEMS})
LINES = "\n".join(map(json.dumps, ITEMS))
FORMS = {
    "as asked for": WHOLE,
    "thinking in marks": f'<think>maybe {{"pairs": [{json.dumps(item())}]}} {{no}}</think>\n{WHOLE}',
    "thinking whose mark is in the prompt": f"braces {{like these}} [here]\n</think>\n{WHOLE}",
    "thinking without marks": f"I write {{source, target}} for each, as in {json.dumps(item(source='x'))}.\n{WHOLE}",
    "fence with a remark": f"Here:\n```json\n{WHOLE}\n```\nI kept {{all}} things [as they were].",
    "bare list": json.dumps(ITEMS),
    "bare list in a fence": f"```\n{json.dumps(ITEMS, indent=2)}\n```",
    "JSON Lines": LINES,
    "JSON Lines in a fence": f"```jsonl\n{LINES}\n```\nDone.",
    "comma after the last item": WHOLE.replace("}]}", "},]}"),
    "comma in every item": WHOLE.replace('["car"]', '["car",]'),
    "comma after the last field": WHOLE.replace('["car"]}', '["car"],}'),
    "single quotes": repr({"pairs": ITEMS}),
    "comments": WHOLE.replace('{"source"', '// one more\n{"source"'),
    "no end": WHOLE[:-2],
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_all_items_are_found_whatever_is_written_around_them(text):
    assert parse_items(Reply(content=text), 4) == ITEMS


@pytest.mark.parametrize("name", ["as asked for", "JSON Lines", "bare list in a fence", "comma in every item"])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_of_an_answer_that_was_cut_off_at_any_place_whole_items_are_kept(name, finish):
    text = FORMS[name]
    for end in range(0, len(text), 7):
        try:
            found = parse_items(Reply(content=text[:end], finish_reason=finish), 4)
        except Malformed:
            found = []
        assert found == ITEMS[: len(found)], text[:end]
        num_whole = sum(text[:end].count(json.dumps(one)) for one in ITEMS)
        assert name in ("comma in every item", "bare list in a fence") or len(found) == num_whole


def test_a_cut_answer_gives_its_pairs_and_names_what_to_raise(server, tmp_path):
    server.script = [lambda body: Plain(data=message(WHOLE[: WHOLE.index("a red car 2")], finish="length"))]
    _, pairs = run_all(tmp_path / "run", config_of(server, 4))
    assert [pair.source for pair in pairs[:2]] == ["a red car 0", "a red car 1"] and len(pairs) == 4
    (reason,) = {reject["reason"] for reject in rejects_of(tmp_path / "run")}
    assert "the answer was cut off; raise --llm.max-output-tokens" in reason


def test_an_answer_that_is_empty_after_thinking_says_so(server, tmp_path):
    server.script = [lambda body: Plain(data=message(None, finish="length"))]
    run_all(tmp_path / "run", config_of(server, 4))
    assert "all tokens went into thinking; raise --llm.max-output" in rejects_of(tmp_path / "run")[0]["reason"]


def test_an_item_that_is_missing_leaves_the_others_with_their_captions(server, tmp_path):
    captions = ["a dog on a sofa", "a cat by a door", "a boat on a lake"]
    (tmp_path / "mine.txt").write_text("\n".join(captions))
    server.script = [lambda body: Plain(data=message(json.dumps({"pairs": good_items(body)[::2]})))]
    run_all(tmp_path / "run", config_of(server, 3, captions=tmp_path / "mine.txt", kinds=("time",)))
    assert [(row["caption"], row["reason"]) for row in rejects_of(tmp_path / "run")] == [
        (captions[1], "the answer has fewer pairs than asked for")
    ]


def test_what_was_rejected_can_be_read_when_nothing_was_kept(server, tmp_path):
    server.default = lambda body: Plain(data=message("I would rather talk"))
    with pytest.raises(InputError, match=r"the answer is not JSON .*; what came instead is in .*rejects\.jsonl"):
        run_all(tmp_path / "run", config_of(server, 4))
    assert rejects_of(tmp_path / "run")[0]["raw"] == "I would rather talk"
    assert not (tmp_path / "run/prompts/prompts.jsonl").exists()


STRANGE = {
    "choices as an object": {"choices": {"0": 1}},
    "choices as a number": {"choices": 3},
    "a choice that is none": {"choices": [None]},
    "content as a number": {"choices": [{"message": {"content": 7}}]},
    "content as an object": {"choices": [{"message": {"content": {"pairs": []}}}]},
    "nothing": None,
}


@pytest.mark.parametrize("found", STRANGE.values(), ids=STRANGE.keys())
def test_an_answer_in_no_known_shape_is_asked_for_again(server, tmp_path, found):
    server.script = [lambda body: Plain(data=json.dumps(found).encode())]
    _, pairs = run_all(tmp_path / "run", config_of(server, 4))
    assert len(pairs) == 4 and len(server.bodies) == 2


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"choices": ' + b"9" * 5000 + b"}", b"\xff\xfe\x00"])
def test_what_cannot_be_parsed_is_asked_for_again(server, tmp_path, data):
    server.script = [lambda body: Plain(data=data)]
    assert len(run_all(tmp_path / "run", config_of(server, 4))[1]) == 4


def test_content_in_parts_is_read(server, tmp_path):
    def parts(body):
        content = [{"type": "text", "text": part} for part in (WHOLE[:40], WHOLE[40:])]
        return Plain(data=json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    server.script = [parts]
    _, pairs = run_all(tmp_path / "run", config_of(server, 4))
    assert [pair.source for pair in pairs] == [one["source"] for one in ITEMS]


HOSTILE = {
    "half a character": (json.dumps({"pairs": [item(source="a \ud800 car")] * 4}), "control characters"),
    "a number of 5,000 digits": ('{"pairs": [{"source": ' + "9" * 5000 + "}]}", "the answer is not JSON"),
    "10,000 words": (json.dumps({"pairs": [item(words=["car"] * 10_000)] * 4}), "more than 20 words"),
    "a deep list": ("[" * 50_000, "the answer is not JSON"),
    "a deep answer": ('{"pairs":' * 3_000, "the answer"),
}


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_content_that_is_made_to_hurt_becomes_a_reject(server, tmp_path, content, reason):
    start_s = time.process_time()
    server.script = [lambda body: Plain(data=message(content))]
    _, pairs = run_all(tmp_path / "run", config_of(server, 4))
    assert len(pairs) == 4 and reason in rejects_of(tmp_path / "run")[0]["reason"]
    assert time.process_time() - start_s < 20  # a hang, not a matter of speed


def drip(wfile):
    wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(1000):
        wfile.write(b" ")
        wfile.flush()
        time.sleep(0.05)


def drip_headers(wfile):
    wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(1000):
        wfile.write(b"x")
        wfile.flush()
        time.sleep(0.05)


def never_end(wfile):
    wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(1000):
        wfile.write(b" " * 1_000_000)


@pytest.mark.parametrize("write", [drip, drip_headers, never_end])
def test_an_answer_that_never_ends_is_cut_and_asked_for_again(server, tmp_path, write):
    server.script = [lambda body: Plain(write=write)]
    _, pairs = run_all(tmp_path / "run", config_of(server, 4, limits={"timeout_s": 1.0}))
    assert len(pairs) == 4 and len(server.bodies) == 2


def test_an_unreasonable_wait_stops_and_one_without_end_is_not_heeded(server, tmp_path):
    server.script = [lambda body: fail(429, "busy", Retry_After="inf")]
    run_all(tmp_path / "run", config_of(server, 4))
    server.script = [answer_well, lambda body: fail(429, "busy", Retry_After="99999")]
    last, pairs = run_all(tmp_path / "other", config_of(server, 8))
    assert "asks to wait 99999 s: 429 busy" in last.note and len(pairs) == 4


@pytest.mark.parametrize("field", ["seed", "temperature"])
@pytest.mark.parametrize("says", ["Unsupported parameter: '{}'", "unknown argument"])
def test_a_field_that_the_server_refuses_is_left_out_and_remembered(server, tmp_path, field, says):
    def picky(body):
        return fail(400, says.format(field)) if field in body else answer_well({"seed": 1, **body})

    server.default = picky
    last, pairs = run_all(tmp_path / "run", config_of(server, 12, kinds=("recolour", "reshape", "add")))
    assert len(pairs) >= 4 and sum(field in body for body in server.bodies) <= 4
    assert all(field not in body for body in server.bodies[-2:])


@pytest.mark.parametrize("missing", [404, 405])
def test_an_address_without_a_version_is_tried_with_it_and_said(server, tmp_path, missing):
    server.url = server.url.removesuffix("/v1")

    def only_v1(body):
        return answer_well(body) if server.paths[-1].startswith("/v1/") else fail(missing, "no such page")

    server.default = only_v1
    config = config_of(server, 8)
    from restage.prompts.stage import run_prompts
    from restage.run.folder import RunFolder

    notes = [step.note for step in run_prompts(RunFolder.open(tmp_path / "run", {}, seed=1), config)]
    assert any(f"has no such page, so {server.url}/v1 is asked" in note for note in notes)
    assert [path.startswith("/v1/") for path in server.paths] == [False, True, True]


def test_what_the_server_says_is_shown_wherever_it_says_it(server, tmp_path):
    for data in (
        b'{"detail": "model m is not loaded"}',
        b'{"error": "model m is not loaded"}',
        b'{"message": "model m is not loaded"}',
        b"model m is not loaded",
        b'{"detail": [{"msg": "model m is not loaded"}]}',
    ):
        server.default = lambda body, data=data: Plain(400, {}, data)
        with pytest.raises(InputError, match="refuses the request: 400 .*model m is not loaded"):
            run_all(tmp_path / str(len(server.bodies)), config_of(server, 4))


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -(10**6), "completion_tokens": -5}, {"prompt_tokens": [1]}, "x", 10**40]
)
def test_usage_that_is_none_does_not_lower_the_cost(server, tmp_path, usage):
    def lie(body):
        found = json.loads(answer_well(body).data)
        return Plain(data=json.dumps({**found, "usage": usage}).encode())

    server.default = lie
    run_all(tmp_path / "run", config_of(server, 4))
    past = AnswerCache(tmp_path / "run/prompts/llm").past
    assert past.num_input > 100 and past.num_output > 50


def spellings(key: str) -> list[str]:
    return [
        key,
        "".join(f"\\u{ord(c):04x}" for c in key),
        key.replace("-", "\\u002D"),
        "".join(f"\\\\u{ord(c):04x}" for c in key),
        "".join(f"%{ord(c):02X}" for c in key),
        "".join(f"&#{ord(c)};" for c in key),
        key.replace("s", "\\x73"),
    ]


def assert_nowhere(folder, *secrets: str) -> None:
    for path in folder.rglob("*"):
        text = path.read_text(errors="replace") if path.is_file() else ""
        for secret in secrets:
            assert not [spelling for spelling in spellings(secret) if spelling in text], path


@pytest.mark.parametrize("number", range(7))
def test_a_key_that_the_model_spells_in_escapes_is_written_nowhere(server, tmp_path, number):
    spelled = spellings(KEY)[number]
    inner = [item(source=f"a red car SECRET {n}", target=f"a blue car {n}") for n in range(4)]
    content = json.dumps({"pairs": inner}).replace("SECRET", spelled)
    server.script = [lambda body: Plain(data=message(content))]
    _, pairs = run_all(tmp_path / "run", config_of(server, 8))
    assert_nowhere(tmp_path / "run", KEY)
    assert all(KEY not in pair.source for pair in pairs)


def test_secrets_in_the_address_of_the_environment_are_said_and_written_nowhere(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    secret_url = server.url.replace("http://", "http://user-name:pass%2Dword-1@") + "?key=query-secret-2"
    monkeypatch.setenv("OPENAI_BASE_URL", secret_url)
    secrets = ("pass-word-1", "pass%2Dword-1", "query-secret-2")
    config = config_of(server, 4, llm={"base_url": ""})
    server.script = [lambda body: fail(500, f"failed {secrets} {server.headers[-1]['authorization']}")]
    run_all(tmp_path / "run", config)
    assert server.headers[0]["authorization"].startswith("Basic ") and server.paths[0].endswith("?key=query-secret-2")
    assert_nowhere(tmp_path / "run", *secrets)
    server.default = lambda body: fail(500, f"failed {secrets} {server.headers[-1]['authorization']} {secret_url}")
    with pytest.raises(InputError) as error:
        run_all(tmp_path / "other", config_of(server, 4, llm={"base_url": ""}, limits={"max_tries": 2}))
    assert not [secret for secret in (*secrets, server.headers[-1]["authorization"][6:]) if secret in str(error.value)]


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host:80", "http://", "http://[::1/v1", "http://a\x00b", "http://a b/"]
)
def test_what_is_no_address_is_refused_without_repeating_it(monkeypatch, url):
    with pytest.raises(InputError, match="base_url is no address"):
        LlmConfig(base_url=url)
    monkeypatch.setattr("os.environ", {"OPENAI_BASE_URL": url, "RESTAGE_LLM_MODEL": "m"})
    with pytest.raises(InputError, match="OPENAI_BASE_URL is no address") as error:
        find_access(LlmConfig())
    assert url == "http://" or url not in str(error.value)


def test_a_page_of_chat_completions_is_taken_as_the_address_above_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    access = find_access(LlmConfig(base_url="http://host/v1/chat/completions/", model="m"))
    assert access.base_url == access.shown_url == "http://host/v1"


def test_more_prompts_than_fit_in_memory_are_refused():
    with pytest.raises(InputError, match="at most"):
        PromptsConfig(num_prompts=999_999_999_999)

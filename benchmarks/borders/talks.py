"""Borders that are no file: arguments, names, answers of a language model, requests to the viewer, stores."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import socketserver
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from benchmarks.borders import faults
from benchmarks.borders.judge import KEY, Case, call_cli, lay_out
from tests.fake_server import Plain, fail
from tests.prompts.fake_llm import answer_well, good_items, message, serve

__all__ = ["answers", "arguments", "names", "requests", "stores"]

# Arguments of the command line.

NOT_A_NUMBER = ("x", "", "1,5", "0x", "--", "1 2", "\x1b[2J", "[]", "None ")
BAD_COUNT = (*NOT_A_NUMBER, "-1", "-99999999999999999999", "1.5", "1e3", "nan")
BAD_SHARE = (*NOT_A_NUMBER, "-0.1", "1e400", "nan", "inf", "7")
BAD_NAME = ("x", "", "../x", "a" * 5000, "\x1b[2J", "None", "restage ", "RESTAGE")
BAD_OUT = ("/dev/null/x", "/proc/x", "outside/secret/x", "a" * 300, "a/" * 3000, "out\0x", "outside/secret")
BAD_IN = (*BAD_OUT, "", "nowhere", "/dev/null", "/dev/zero", "outside", ".", "/proc/self", "\udcff")
BAD_DEVICE = ("nonsense", "cuda:99", "", "cpu:x", "meta", "mps", "cuda:-1", "\x1b[2J")
FIT = ("fit", "given/nerfstudio", "--out", "out", "--steps", "3", "--num-splats", "50")
EDIT = ("edit", "given/fitted", "make it blue", "--method", "nothing")
PROMPTS = ("prompts", "out", "--num-prompts", "2")
WORLD = ("world", "out", "--capture.num-views", "4", "--capture.size", "32", "--capture.num-points", "50")
TRAIN = ("train", "given/paired", "--models", "{inputs}/models", "--training.num-steps", "2")
SIZES = ("--training.batch-size", "2")
PAIRS = ("pairs", "given/prompted", "--models", "{inputs}/models", "--generate.sampler.num-steps", "2")

OPTIONS: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (FIT, "--steps", (*BAD_COUNT, "0")), (FIT, "--num-splats", (*BAD_COUNT, "0")), (FIT, "--size", (*BAD_COUNT, "0")),
    (FIT, "--sh-degree", (*BAD_COUNT, "4")), (FIT, "--loss.ssim-share", BAD_SHARE), (FIT, "--out", BAD_OUT),
    (FIT, "--means-decay", BAD_SHARE), (FIT, "--time-budget", (*BAD_SHARE[:-1], "0")),
    (FIT, "--shell-radius", BAD_SHARE[:-1]), (FIT, "--rates.means", BAD_SHARE[:-1]),
    (FIT, "--cull-every", (*BAD_COUNT, "0")), (("fit", "--out", "out"), "", BAD_IN), (("show",), "", BAD_IN),
    (("verify", "--fast"), "", BAD_IN), (("diff", "given/fitted"), "", BAD_IN),
    (("export", "given/fitted"), "", BAD_OUT[:-1]), (("view",), "", BAD_IN),
    (("export", "given/fitted", "out", "--format"), "", BAD_NAME), (("import", "--out", "out"), "", BAD_IN),
    (("import", "given/nerfstudio", "--out", "out", "--format"), "", BAD_NAME),
    (("bundle", "given/fitted", "--out"), "", BAD_OUT), (("edit", "given/fitted"), "", ("", " ", "\0", "a\0b")),
    (EDIT, "--method", BAD_NAME), (EDIT, "--editor", BAD_NAME), (EDIT, "--device", BAD_DEVICE),
    (EDIT, "--strength", BAD_SHARE), (EDIT, "--time-budget", (*BAD_SHARE[:-1], "-1")), (EDIT, "--start", BAD_IN),
    (EDIT, "--model", BAD_OUT), (("edit",), "make it blue", BAD_IN),
    (PROMPTS, "--num-prompts", (*BAD_COUNT, "0", "999999999999")), (PROMPTS, "--writer", BAD_NAME),
    (PROMPTS, "--kinds", BAD_NAME), (PROMPTS, "--captions", (*BAD_IN[:-1],)), (PROMPTS, "--path", BAD_IN[:-1]),
    (PROMPTS, "--learn-from", BAD_IN), (PROMPTS, "--near-duplicates", BAD_SHARE),
    (PROMPTS, "--max-noun-share", BAD_SHARE), (("prompts",), "", BAD_OUT), (WORLD, "--num-scenes", (*BAD_COUNT, "0")),
    (WORLD, "--capture.num-views", (*BAD_COUNT, "0")), (WORLD, "--capture.size", (*BAD_COUNT, "0")),
    (WORLD, "--num-objects", (*BAD_COUNT, "99999")), (WORLD, "--edit-kinds", BAD_NAME), (WORLD, "--split", BAD_NAME),
    (TRAIN, "--training.batch-size", (*BAD_COUNT, "0")),
    ((*TRAIN, *SIZES), "--training.learning-rate", BAD_SHARE[:-1]),
    ((*TRAIN, *SIZES), "--training.num-steps", BAD_COUNT), ((*TRAIN, *SIZES), "--models", BAD_IN),
    (PAIRS, "--engine", BAD_NAME), (PAIRS, "--workers", BAD_COUNT),
    (PAIRS, "--store", ("x://y", "s3://", "http://127.0.0.1:9/x", "://")),
    (PAIRS, "--generate.guidance", BAD_SHARE[:-1]), (PAIRS, "--generate.batch-size", (*BAD_COUNT, "0")),
    (PAIRS, "--pairs-per-shard", (*BAD_COUNT, "0")), (PAIRS, "--generate.sampler.solver", BAD_NAME),
    (PAIRS, "--models", BAD_IN), (("report",), "", BAD_IN), (("report", "given/fitted"), "--formats", BAD_NAME),
    (("report", "given/fitted"), "--max-views", (*BAD_COUNT, "0")), (("calibrate",), "", BAD_IN),
    (("study", "--out", "out"), "", BAD_IN), (("track", "given/fitted", "--to"), "", BAD_NAME),
    (("diagnose", "given/fitted"), "", BAD_IN), (("compare",), "", BAD_IN), (("edits",), "", BAD_IN),
    (("scenes",), "", BAD_OUT), (("view", "given/fitted"), "--port", (*BAD_COUNT, "0", "70000")),
    (("view", "given/fitted"), "--host", ("x y", "", "256.1.1.1", "a" * 300)),
    (("show", "given/fitted"), "--row", (*BAD_COUNT, "99999")), ((), "", (*BAD_NAME, "\0", "-", "--nonsense")),
    (("rounds", "out", "--models", "{inputs}/models"), "--num-rounds", (*BAD_COUNT, "0")), (("rounds",), "", BAD_OUT),
)  # fmt: skip
"""A command line that works, or nearly, and an option (or the next argument) with values that must all be refused."""

SURVIVED = (("ls",), ("doctor", "--runs"))
"""Commands that any place may be named to."""


def arguments(place: Path, rng: Random, inputs: Path) -> Case:
    """One argument is what it must not be."""
    lay_out(place)
    for name in ("nerfstudio", "fitted", "prompted", "paired"):
        shutil.copytree(inputs / name, place / "given" / name)
    command, option, values = rng.choice(OPTIONS)
    value = rng.choice(values)
    words = [word.format(inputs=inputs) for word in command]
    words += [option, value] if option.startswith("--") else [value, option] if option else [value]
    if rng.random() < 0.3 and option.startswith("--"):
        words[-2:] = [f"{option}={value}"]
    return Case(
        what=f"arguments: {' '.join(command[:2])} {option} {value[:40]!r}",
        command=words,
        run=lambda: call_cli(words),
        must_refuse=True,
        codes=(2,),
        writes=("given/fitted/run.json", "given/prompted/run.json", "given/paired/run.json"),
    )


# Names of runs.

NAMES = (
    "\x1b[2Jrun", "run\nrestage: done", "run\r", "\udcff", "\u202enur", " ", "-rf", "--help", "r" * 250, "run;ls",
    "$(id)", "r\x07\x08", "%s%n", "{x}", "[bold]", "run.zip", "<b>", "'", '"', "run\t", "\x9b31m", "ru\\n", "*",
)  # fmt: skip
NAMED: tuple[tuple[str, ...], ...] = (
    ("show", "{run}"), ("ls", "given"), ("verify", "{run}", "--fast"), ("diff", "{run}", "{inputs}/run"),
    ("bundle", "{run}", "--out", "out.zip"), ("export", "{run}", "out.ply"), ("report", "{run}"),
    ("report", "{run}", "--formats", "page", "latex", "slides", "zip"),
    ("edit", "{run}", "make it blue", "--method", "nothing"),
)  # fmt: skip


def names(place: Path, rng: Random, inputs: Path) -> Case:
    """A run, or its scene, has a hostile name; what is printed of it must not reach the terminal raw."""
    lay_out(place)
    name, command = rng.choice(NAMES), rng.choice(NAMED)
    is_scene = rng.random() < 0.4
    run = place / "given" / ("run" if is_scene else name)
    shutil.copytree(inputs / "fitted", run)
    if is_scene:
        next((run / "scenes").glob("*/")).rename(run / "scenes" / name)
    words = [word.replace("{run}", str(run.relative_to(place))).replace("{inputs}", str(inputs)) for word in command]
    return Case(
        what=f"name {name[:20]!r} of a {'scene' if is_scene else 'run'}: {command[0]}",
        command=words,
        run=lambda: call_cli(words),
        must_refuse=False,
        writes=("given/*", "out", "out/*", "out.*"),
        codes=(0, 1, 2) if command[0] == "verify" else (0, 2),
    )


# Answers of a language model.


def spoiled_json(content: bytes, rng: Random, place: Path) -> bytes:
    """JSON with one of the faults that files get."""
    kinds = [fault for fault in faults.JSON if fault not in (faults.missing, faults.folder, faults.fifo, faults.device)]
    kinds = [fault for fault in kinds if fault not in (faults.dangling, faults.link_to_itself)]
    path = place / "answer.json"
    path.write_bytes(content)
    rng.choice(kinds)(path, rng)
    spoiled = path.read_bytes()
    path.unlink()
    return spoiled


def drip(file: Any) -> None:
    file.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        file.write(b" ")
        file.flush()
        time.sleep(0.05)


def flood(file: Any) -> None:
    file.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        file.write(b" " * 1_000_000)


def endless_header(file: Any) -> None:
    file.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        file.write(b"x" * 100_000)


def no_http(file: Any) -> None:
    file.write(b"\0\xff\x1b[2J" * 100)


def packed(content: bytes) -> Plain:
    return Plain(200, {"content-encoding": "gzip"}, content)


Answer = Callable[[dict[str, Any]], Plain]


def draw_answer(rng: Random, place: Path) -> tuple[str, Answer]:
    """How the endpoint misbehaves, always."""
    seed = rng.random()

    def outer(body: dict[str, Any]) -> Plain:
        return Plain(data=spoiled_json(answer_well(body).data, Random(seed), place))

    def inner(body: dict[str, Any]) -> Plain:
        content = spoiled_json(json.dumps({"pairs": good_items(body)}).encode(), Random(seed), place)
        return Plain(data=message(content.decode("utf-8", "replace")))

    wait = rng.choice(("inf", "-1", "nan", "1e300", "999999999", "x", "Thu, 01 Jan 9999 00:00:00 GMT", "\x7f"))
    status = rng.choice((200, 204, 301, 400, 401, 403, 404, 413, 418, 429, 500, 503))
    text = rng.choice(("no", KEY, "\x1b[2J", "x" * 10**6, json.dumps(KEY)[1:-1], "seed is not supported", ""))
    talk = rng.choice((drip, flood, endless_header, no_http))
    bomb = b"".join([gzip.compress(bytes(20_000_000))] * 100)
    choices: tuple[tuple[str, Answer], ...] = (
        ("spoiled answer", outer), ("spoiled answer", outer), ("spoiled pairs", inner), ("spoiled pairs", inner),
        (f"retry-after {wait}", lambda body: fail(429, "busy", Retry_After=wait)),
        (f"status {status}: {text[:20]!r}", lambda body: fail(status, text)),
        ("status without JSON", lambda body: Plain(status, {}, text.encode())),
        (talk.__name__, lambda body: Plain(write=talk)),
        ("redirect", lambda body: Plain(302, {"location": rng.choice(("file:///etc/passwd", "/", "http://127.0.0.1:9/"))})),
        ("gzip bomb", lambda body: packed(bomb)), ("no gzip", lambda body: packed(b"x")),
        ("cut", lambda body: Plain(data=answer_well(body).data, cut_after=rng.randrange(300))),
    )  # fmt: skip
    return rng.choice(choices)


def answers(place: Path, rng: Random, inputs: Path) -> Case:
    """An endpoint that misbehaves each time that it is asked."""
    lay_out(place)
    what, answer = draw_answer(rng, place)
    words = [
        "prompts",
        "out",
        "--writer",
        "llm",
        "--num-prompts",
        "4",
        "--llm.model",
        "m",
        "--llm.limits.max-tries",
        "2",
    ]
    words += ["--llm.limits.timeout-s", "2"]

    def run() -> int:
        from restage.prompts import endpoint

        endpoint.FIRST_PAUSE_S = 0.01
        socketserver.BaseServer.handle_error = lambda *_: None  # a client that hangs up is no news
        os.environ["OPENAI_API_KEY"] = KEY
        with serve() as server:
            server.default = answer
            words.extend(["--llm.base-url", server.url])
            return call_cli(words)

    return Case(what=f"llm: {what}", command=words, run=run, must_refuse=False)


# Requests to the viewer.


def requests(place: Path, rng: Random, inputs: Path) -> Case:
    """The viewer gets a request of somebody who was not given its address, or nonsense, and goes on."""
    lay_out(place)
    shutil.copytree(inputs / "fitted", place / "given" / "fitted")
    evil = rng.choice(
        ("evil.example", "127.0.0.1.evil.example", "[", "", "a" * 9000, "\xff", "10.0.0.1", "localhost@evil")
    )
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    own, origin = "Host: {host}\r\n", "Origin: http://"
    token = rng.choice(("x", "", "%00", "\u00fc", "a" * 7000))
    choices: tuple[tuple[str, str], ...] = (
        ("other host", f"GET /?{{query}} HTTP/1.1\r\nHost: {evil}\r\n\r\n"),
        ("no token", "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        ("other token", f"GET /?token={token} HTTP/1.1\r\n{own}\r\n"),
        ("other origin", f"GET / HTTP/1.1\r\n{own}{origin}{evil}\r\nCookie: {{cookie}}\r\n{upgrade}"),
        ("no cookie", f"GET / HTTP/1.1\r\n{own}{origin}{{host}}\r\n{upgrade}"),
        ("two hosts", "GET /?{query} HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n"),
        ("no HTTP", rng.choice(("\0" * 1000, "GET\r\n\r\n", "x" * 100_000, "POST / HTTP/1.1\r\n\r\n", "\r\n" * 99))),
        ("path out", "GET /../../../../etc/passwd HTTP/1.1\r\nHost: {host}\r\nCookie: wrong=1\r\n\r\n"),
    )  # fmt: skip
    what, text = rng.choice(choices)
    port = 20_000 + rng.randrange(20_000)

    def run() -> int:
        from restage.view import ViewSession
        from restage.view.serve import serving

        with serving(ViewSession(Path("given/fitted")), port=port) as served:
            parts = urlsplit(served.address)
            address = (parts.hostname or "", parts.port or 0)
            own = {
                "{host}": parts.netloc,
                "{query}": parts.query,
                "{cookie}": f"restage-{parts.port}={parts.query[6:]}",
            }
            content = text
            for name, value in own.items():
                content = content.replace(name, value)
            first = status_of(address, content)
            good = status_of(address, f"GET /?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n")
        if good != 200:
            print(f"restage view: no longer answers, but gives {good}", file=sys.stderr)
            return 99
        print(f"restage view: answered {first}", file=sys.stderr)
        return 0 if first in (101, 200) else 2

    return Case(what=f"viewer: {what}", run=run, must_refuse=True)


def status_of(address: tuple[str, int], request: str) -> int:
    """Status that a server answers with; 0 if it closes the connection."""
    with contextlib.suppress(OSError, ValueError, IndexError), socket.create_connection(address, timeout=5) as opened:
        opened.sendall(request.encode("latin-1", "replace"))
        return int(opened.recv(65536).split()[1])
    return 0


# Stores that a run names.


def stores(place: Path, rng: Random, inputs: Path) -> Case:
    """A received run names a store outside of it; nothing there may be read or moved."""
    lay_out(place)
    run = place / "given" / "paired"
    shutil.copytree(inputs / "paired", run)
    shutil.copytree(run / "pairs", place / "outside" / "pairs")
    url = rng.choice(
        (
            f"file://{place}/outside/pairs",
            "http://127.0.0.1:9/x",
            "s3://x/y",
            3,
            None,
            "memory://x",
            "../../../outside/pairs",
        )
    )
    (run / "pairs" / "store.json").write_text(json.dumps({"url": url}))
    command = rng.choice(
        (("verify", "--fast", "--repair"), ("verify", "--fast"), ("show",), ("bundle", "--out", "out.zip"))
    )
    words = [command[0], "given/paired", *command[1:]]
    return Case(
        what=f"store {url}: {' '.join(command)}",
        command=words,
        run=lambda: call_cli(words),
        must_refuse=False,
        writes=("given/*", "out", "out/*", "out.*"),
        codes=(0, 1, 2),
    )

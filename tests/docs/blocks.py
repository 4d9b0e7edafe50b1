"""Runs the shell blocks of a page: every command as it stands there, with the small settings of `settings.py` put in.

A block whose page says `<!-- not run: why -->` in the line before it is left out, and so is a command that a line of
`NOT_RUN` names. Everything else has to run. The lines of a `text` block that follows, before the next heading, have to
be among those printed.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from restage.cli import run
from tests.docs.settings import NOT_RUN, PORT, SMALL, SUBSTITUTES

__all__ = ["Block", "Command", "Shell", "looks_like", "read_blocks", "read_commands", "reason_not_to_run"]

FENCED = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    flags=re.DOTALL | re.MULTILINE,
)
SHELLS = ("", "sh", "bash")
ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)=(.*)$", flags=re.DOTALL)
WAITING = ("serve", "view")
"""Commands that go on until they are stopped."""
FILE_COMMANDS = ("cat", "cp", "ls", "mkdir", "python")
MAX_WAIT_S = 240.0
"""Seconds until a command that waits has to have said its address; a busy machine takes long to import."""


class Block(NamedTuple):
    """A shell block of a page."""

    line: int
    text: str
    reason: str
    """Why it is not run; empty for a block that is."""
    printed: tuple[str, ...]
    """Lines that the page shows as printed by it."""


class Command(NamedTuple):
    """A command of a block."""

    words: tuple[str, ...]
    variables: dict[str, str]
    is_background: bool

    @property
    def text(self) -> str:
        """The command as a line."""
        return " ".join(self.words)


def read_blocks(page: Path) -> list[Block]:
    """Return the shell blocks of a page in their order."""
    text, blocks, end = page.read_text(encoding="utf-8"), list[Block](), 0
    for found in FENCED.finditer(text):
        if found["language"] in SHELLS:
            line = text.count("\n", 0, found.start("text"))
            blocks.append(Block(line, found["text"], found["reason"] or "", ()))
            end = found.end()
        elif found["language"] == "text" and blocks and "\n#" not in text[end : found.start()]:
            blocks[-1] = blocks[-1]._replace(printed=(*blocks[-1].printed, *found["text"].splitlines()))
    return blocks


def read_commands(text: str) -> Iterator[Command]:
    """Yield the commands of a block: a line each, or several with `;`, `&&` or `&` between them."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        words = list[str]()
        for token in [*lexer, ";"]:
            if token not in (";", "&&", "&"):
                words.append(token)
            elif words:
                variables = dict[str, str]()
                while words and (found := ASSIGNMENT.match(words[0])):
                    variables[found[1]] = found[2]
                    words.pop(0)
                program = [words[0].removeprefix(".venv/bin/")] if words else []
                yield Command((*program, *words[1:]), variables, token == "&")
                words = []


def reason_not_to_run(command: Command) -> str:
    """Return why a command is not run; empty for one that is."""
    line = " ".join([command.text, *command.variables.values()])
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), "")


def looks_like(shown: str, printed: str) -> bool:
    """Whether a line is what a page shows, but for its numbers, for its spaces and for what `...` stands for."""
    pattern = ""
    for part in re.split(r"(\.\.\.|\d[\d.,]*|\s+)", shown.strip()):
        if part == "...":
            pattern += ".*"
        elif part[:1].isdigit():
            pattern += r"\d[\d.,]*"
        else:
            pattern += r"\s+" if part.isspace() else re.escape(part)
    return re.fullmatch(pattern, printed.strip()) is not None


@dataclass
class Shell:
    """Runs commands in a folder, one after another, as the shell of somebody who reads the page would."""

    folder: Path
    port: int = 0
    """Port of what the page serves, in place of the page's own."""
    variables: dict[str, str] = field(default_factory=dict)
    background: list[BaseProcess] = field(default_factory=list)

    def run_block(self, block: Block) -> None:
        """Run every command of a block that can run.

        Raises:
            AssertionError: a command failed, or does not print what the page says.
        """
        printed, text = "", block.text
        for pattern, replacement in SUBSTITUTES.items():
            text = re.sub(pattern, replacement, text)
        for command in read_commands(text.replace(PORT, str(self.port))):
            if not reason_not_to_run(command):
                printed += self.run(command)
        lines = printed.splitlines()
        for shown in block.printed:
            found = not shown.strip(". ") or any(looks_like(shown, line) for line in lines)
            assert found, f"the page shows a line that is not printed:\n{shown}\nprinted:\n{printed}"

    def run(self, command: Command) -> str:
        """Run a command, and return what it prints."""
        words = [self._expanded(word) for word in command.words]
        variables = {**self.variables, **command.variables}
        if not words or words[0] == "export":
            given = {**command.variables, **dict(word.split("=", 1) for word in words[1:])}
            self.variables |= {name: self._expanded(value) for name, value in given.items()}
            return ""
        if words[0] == "restage" and words[1:2] and words[1] in WAITING:
            return self._wait_for(words[1:], variables, stays=command.is_background)
        assert not command.is_background, f"only {WAITING} can run in the background: {command.text}"
        if words[0] == "restage":
            code, printed = self._restage(_small(words[1:]), variables)
        else:
            assert words[0] in FILE_COMMANDS, f"neither run nor marked as not run: {command.text}"
            program = [sys.executable if words[0] == "python" else words[0], *words[1:]]
            how = {"cwd": self.folder, "env": {**os.environ, **variables}, "capture_output": True, "text": True}
            done = subprocess.run(program, check=False, **how)
            code, printed = done.returncode, done.stdout + done.stderr
        assert code == 0, f"{command.text}\nended with {code}:\n{printed}"
        return printed

    def stop(self) -> None:
        """Stop what runs in the background, as Ctrl-C does."""
        for process in self.background:
            _interrupt(process)
        self.background.clear()

    def _expanded(self, word: str) -> str:
        with mock.patch.dict(os.environ, self.variables):
            return os.path.expandvars(word)

    def _restage(self, words: list[str], variables: dict[str, str]) -> tuple[int, str]:
        out = io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            mock.patch.dict(os.environ, variables),
            mock.patch.object(sys, "argv", ["restage", *words]),
        ):
            try:
                code = run(words)
            except SystemExit as ended:
                code = int(ended.code or 0)
        return code, out.getvalue()

    def _wait_for(self, words: list[str], variables: dict[str, str], *, stays: bool) -> str:
        """Start a command that goes on until it is stopped, and stop it once it has said its address."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.docs.waiting"])
        from tests.docs.waiting import run_waiting

        log = self.folder / f"{words[0]}.log"
        log.unlink(missing_ok=True)
        words = _small([*words, "--port", str(self.port)])
        process = context.Process(target=run_waiting, args=(words, self.folder, variables, log))
        process.start()
        deadline_s = time.monotonic() + MAX_WAIT_S
        while "://" not in (log.read_text() if log.exists() else ""):
            assert process.is_alive() and time.monotonic() < deadline_s, f"{words} does not serve:\n{log.read_text()}"
            time.sleep(0.05)
        if stays:
            self.background.append(process)
        else:
            _interrupt(process)
        return log.read_text()


def _small(words: list[str]) -> list[str]:
    """Return the words of a command with the small settings that belong to it after its own."""
    line = " ".join(words)
    return [*words, *(word for pattern, extra in SMALL.items() if re.search(pattern, line) for word in extra.split())]


def _interrupt(process: BaseProcess) -> None:
    assert process.pid is not None and process.is_alive(), "it has ended by itself"
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 0, f"Ctrl-C ended it with {process.exitcode}"

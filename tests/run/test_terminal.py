import ast
from pathlib import Path

import pytest

import restage
from restage.records import Progress
from restage.run.progress import printable, report, say, show_progress

NASTY = "a\x1b]0;owned\x07b\x1b[2J\x9bm\r\u202egnp"


def test_what_a_terminal_would_obey_is_spelled_out_and_all_else_is_kept():
    assert printable(NASTY) == r"a\x1b]0;owned\x07b\x1b[2J\x9bm\r\u202egnp"
    assert printable("Bär 熊 \U0001f43b\n\ttab – “x”\xa0y") == "Bär 熊 \U0001f43b\n\ttab – “x”\xa0y"
    assert printable("half of a pair: \ud83d") == r"half of a pair: \ud83d"


def test_names_from_outside_cannot_command_the_terminal(capsys):
    say(NASTY)
    show_progress([Progress(stage="fit", done=1, total=1, note=NASTY)])
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b[2J") == 2
    assert "\x1b" not in shown and "\x9b" not in shown and "\r" not in shown


def test_what_work_reports_from_within_is_shown_among_its_steps(capsys):
    def work():
        report(Progress(stage="features", done=2, total=2))
        yield Progress(stage="fit", done=1, total=1)

    show_progress(work())
    report(Progress(stage="nobody", done=1, total=1))  # looks at it
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["features", "fit"]


@pytest.mark.parametrize("place", ["cli.py", "commands", "audit", "view", "run/progress.py"])
def test_whatever_the_command_line_prints_goes_through_say(place):
    path = Path(restage.__file__).parent / place
    calls = []
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        tree = ast.parse(file.read_text())
        allowed = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "say"]
        inside = {id(node) for function in allowed for node in ast.walk(function)}
        calls += [
            f"{file.name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if not (file.name == "progress.py" and id(node) in inside)
        ]
    assert calls == []

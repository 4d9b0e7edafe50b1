"""What the site shows beside the pages of this folder: README, the help of every command, the Python API, changes."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Pages that lie beside this folder, and what the site calls them."""
PYTHON = """# From Python

::: restage.api
    options:
      show_root_heading: false
      members: [fit, edit, generate, load, Scene, Edit]

## Methods
Each is a frozen dataclass of settings; `restage.edit(scene, "...", method="joint")` takes its defaults, `settings=` an
instance.

{methods}
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    made = {name: _from_root((REPOSITORY / source).read_text()) for source, name in BESIDE.items()}
    made |= {"commands.md": _commands(), "python.md": PYTHON.format(methods=_methods())}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to pages beside this folder lead to where the site has them, and draw the rooms without a script."""
    for source, name in BESIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}").replace(f"](../../{source}", f"](../{name}")
    return re.sub(r"```mermaid\n(.*?)```", lambda found: _drawing(found[1]), markdown, flags=re.DOTALL)


def _from_root(text: str) -> str:
    """Return a page of the repository's root with its links as they are from here."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\[([^]]*)\]\((?:LICENSE|CITATION\.cff|SECURITY\.md)\)", r"\1", text)
    for source, name in BESIDE.items():
        text = text.replace(f"]({source}", f"]({name}")
    return text


def _commands() -> str:
    """Return the help of every command, as `restage COMMAND --help` prints it."""
    from restage.cli import SUMMARIES, run

    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    parts = ["# Commands", "What `restage COMMAND --help` says, in the order data flows."]
    for name, summary in SUMMARIES.items():
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            run([name, "--help"])
        parts.append(f"## restage {name}\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{out.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _methods() -> str:
    from restage.edit.methods import METHODS

    return "\n\n".join(f"::: {kind.__module__}.{kind.__qualname__}" for kind in METHODS.values())


def _drawing(diagram: str) -> str:
    """Return the groups of a flow chart and their boxes, in order, as HTML."""
    parts = []
    for title, body in re.findall(r'subgraph \w+\["(.*?)"\](.*?)\n  end', diagram, flags=re.DOTALL):
        boxes = dict.fromkeys(re.findall(r'\w+\["(.*?)"\]', body))
        shown = "".join(f"<li>{_box(label)}</li>" for label in boxes)
        parts.append(f'<section class="rooms"><h4>{html.escape(title)}</h4><ul>{shown}</ul></section>')
    return "\n".join(parts)


def _box(label: str) -> str:
    name, *rest = label.split("<br>")
    return f"<b>{html.escape(name)}</b>" + "".join(f"<br>{html.escape(line)}" for line in rest)

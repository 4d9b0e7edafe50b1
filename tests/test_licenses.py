from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
COPYLEFT = re.compile(
    r"(?<![A-Za-z])(A?GPL|GNU (Affero )?General Public|EUPL|SSPL|OSL|CC-BY-SA|CC-BY-NC)", re.IGNORECASE
)
"""Licenses that reach further than LGPL and MPL, which leave the code that uses a library alone."""


def hard_dependencies() -> set[str]:
    """All packages that `pip install restage` brings, by what is installed here; extras do not count."""
    names = [Requirement(line) for line in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]]
    found: set[str] = set()
    while names:
        requirement = names.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            names += [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            pytest.fail(f"{name} is a dependency and is not installed")
        found.add(name)
    return found


def licenses_of(name: str) -> list[str]:
    """What a package's metadata says of its license: one that names several alternatives gives each."""
    head = metadata(name)
    expression = "; ".join(head.get_all("License-Expression") or ())
    classifiers = "; ".join(line for line in head.get_all("Classifier") or () if line.startswith("License ::"))
    text = "; ".join(line.splitlines()[0] for line in head.get_all("License") or () if line)
    stated = expression or classifiers or text
    return [part.strip(" ()") for part in re.split(r"\bOR\b", stated)]


def is_copyleft(name: str) -> bool:
    """Whether every license that a package may be used under is copyleft beyond LGPL."""
    return all(COPYLEFT.search(license) for license in licenses_of(name))


@pytest.mark.parametrize("name", sorted(hard_dependencies()))
def test_no_hard_dependency_is_copyleft_beyond_lgpl(name: str) -> None:
    assert licenses_of(name) != [""], f"{name} states no license"
    assert not is_copyleft(name), f"{name}: {licenses_of(name)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0-only", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)", True),
        ("LGPL-2.1-or-later", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MIT", False),
        ("MPL-2.0 AND MIT", False),
        ("Apache-2.0 OR GPL-2.0-only", False),
    ],
)
def test_copyleft_is_told_from_what_is_not(monkeypatch: pytest.MonkeyPatch, text: str, expected: bool) -> None:
    monkeypatch.setattr(f"{__name__}.licenses_of", lambda _: [part.strip() for part in text.split(" OR ")])
    assert is_copyleft("any") is expected

"""Reads what a paper says of itself (title, authors, abstract, links) from a small TOML or YAML file.

Keys are those of CITATION.cff where it has one, so that such a file can be given as it is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from restage.records import InputError, from_plain

__all__ = ["Author", "Paper", "read_paper"]

IGNORED = frozenset(
    {"cff_version", "message", "type", "version", "license", "keywords", "date_released", "identifiers"}
)
"""Keys of CITATION.cff that a website has no use for."""


@dataclass(frozen=True, kw_only=True)
class Author:
    """One author; a name, or given and family names as in CITATION.cff."""

    name: str = ""
    given_names: str = ""
    family_names: str = ""
    affiliation: str = ""
    website: str = ""
    orcid: str = ""

    @property
    def full_name(self) -> str:
        """The name as it is printed."""
        return self.name or f"{self.given_names} {self.family_names}".strip()


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the website says besides the results; text that is missing is replaced by a placeholder that says so."""

    title: str = "Title of the paper"
    authors: tuple[Author, ...] = (Author(name="First Author", affiliation="Affiliation"), Author(name="Second Author"))
    venue: str = ""
    year: int | None = None
    abstract: str = "The abstract goes here: name a file that has it with --paper."
    url: str = ""
    repository_code: str = ""
    doi: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    """Further buttons: their text, and a web address or a file beside this one, which is copied."""
    method_figure: str = ""
    """A picture beside this file: PNG, JPEG or WebP."""
    method_caption: str = ""
    bibtex: str = ""
    """The entry to copy; made from the other fields where it is empty."""
    folder: Path = Path()
    """Where the files lie that it names."""

    @property
    def buttons(self) -> dict[str, str]:
        """All links, by what their buttons say."""
        known = {"Paper": self.url, "Code": self.repository_code}
        known["DOI"] = f"https://doi.org/{self.doi}" if self.doi else ""
        return {name: target for name, target in {**known, **self.links}.items() if target}

    @property
    def entry(self) -> str:
        """The BibTeX entry."""
        if self.bibtex:
            return self.bibtex.strip()
        names = [author.full_name for author in self.authors]
        words = re.findall(r"[a-z]+", self.title.lower())
        last = re.sub(r"[^a-z]", "", (names[0].split() or ["anonymous"])[-1].lower()) if names else "anonymous"
        key = f"{last}{self.year or ''}{words[0] if words else ''}"
        facts = {"title": f"{{{self.title}}}", "author": " and ".join(names), "booktitle": self.venue}
        facts |= {"year": str(self.year or ""), "doi": self.doi, "url": self.url}
        lines = [f"  {name} = {{{_in_bibtex(text)}}}," for name, text in facts.items() if text]
        return "\n".join([f"@{'inproceedings' if self.venue else 'misc'}{{{key},", *lines, "}"])


def _in_bibtex(text: str) -> str:
    return re.sub(r"(?<!\\)([&%$#_])", r"\\\1", text)


def read_paper(path: Path) -> Paper:
    """Read a `.toml`, `.yaml`, `.yml` or `.cff` file.

    Raises:
        InputError: the file is not readable, has an unknown key or a value of the wrong type, or names a file that is
            not there or an address that is no web address.
    """
    plain = {str(key).replace("-", "_"): value for key, value in _read_plain(path).items()}
    known = [one.name for one in fields(Paper) if one.name != "folder"]
    if unknown := sorted(set(plain) - set(known) - IGNORED):
        expected = ", ".join(name.replace("_", "-") for name in known)
        raise InputError(f"{path} has the unknown key {unknown[0].replace('_', '-')}; expected any of: {expected}")
    if isinstance(authors := plain.get("authors"), list):
        plain["authors"] = [_author(author, path) for author in authors]
    kept = {name: value for name, value in plain.items() if name not in IGNORED}
    paper = from_plain({**kept, "folder": str(path.resolve().parent)}, Paper, where=path)
    for name, target in [*paper.buttons.items(), *((author.full_name, author.website) for author in paper.authors)]:
        if target and urlsplit(target).scheme not in ("http", "https") and not _is_file(paper.folder / target):
            raise InputError(f"{path}: {name} should lead to https://... or to a file beside it, got {target}")
    if paper.method_figure and not _is_file(paper.folder / paper.method_figure):
        raise InputError(f"{path}: method-figure names {paper.method_figure}, which is not there")
    return paper


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _author(author: Any, path: Path) -> Any:
    if isinstance(author, str):
        return {"name": author}
    if not isinstance(author, dict):
        return author
    found = {str(key).replace("-", "_"): value for key, value in author.items()}
    known = [one.name for one in fields(Author)]
    if unknown := sorted(set(found) - {*known, "email", "alias"}):
        expected = ", ".join(name.replace("_", "-") for name in known)
        raise InputError(f"{path}: an author has the unknown key {unknown[0]}; expected any of: {expected}")
    return {name: value for name, value in found.items() if name in known}


def _read_plain(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml", ".cff"):
        raise InputError(f"{path}: expected a .toml, .yaml or .cff file with the texts of the paper")
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        if suffix == ".toml":
            return tomllib.loads(text)
        plain = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not readable: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not readable as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{path}: expected keys with values, such as title: My paper")
    return plain

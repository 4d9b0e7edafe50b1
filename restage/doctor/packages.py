"""Checks of Python and its packages: versions against ranges and constraints, extras, and known traps."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import struct
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import restage
from restage.doctor.machine import Finding, query_gpus
from restage.run.environment import git_commit

__all__ = ["check_extras", "check_packages", "check_python", "check_restage", "check_traps"]

REPOSITORY = Path(restage.__file__).parents[1]
EXTRA_USES = {"colmap": "cameras of plain photographs", "dev": "tests and checks", "serve": "restage serve"}
EXTRA_USES |= {"view": "restage view"}
"""What some extras are for."""
OF_A_CLONE = ("dev", "docs")
"""Extras that serve nothing where restage was installed without its repository."""


def installed_versions() -> dict[str, str]:
    """Return the version of every installed distribution by its normalized name."""
    found = {}
    for distribution in importlib.metadata.distributions():
        # `distribution.metadata` parses all of it, descriptions too, which takes ten times as long.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        name, version = (re.search(rf"^{field}: *(\S+)", text, re.MULTILINE) for field in ("Name", "Version"))
        if name and version:
            found[canonicalize_name(name[1])] = version[1]
    return found


def restage_requirements() -> dict[str, list[Requirement]]:
    """Return what restage requires by extra, and always under `""`: by its checkout, if any, which may be newer."""
    path = REPOSITORY / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        found = {"": project["dependencies"], **project["optional-dependencies"]}
        return {extra: list(map(Requirement, texts)) for extra, texts in found.items()}
    asked = list(map(Requirement, importlib.metadata.requires("restage") or []))
    extras = importlib.metadata.metadata("restage").get_all("Provides-Extra") or []
    always = [one for one in asked if _applies(one, "")]
    return {"": always} | {name: [one for one in asked if _applies(one, name) and one not in always] for name in extras}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement, versions: Mapping[str, str]) -> bool:
    version = versions.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def read_constraints() -> dict[str, str]:
    """Return the exact versions that `make` installs by normalized name; nothing outside a checkout."""
    path = REPOSITORY / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def _install_command(extra: str = "") -> str:
    brackets = f"[{extra}]" if extra else ""
    if (REPOSITORY / "constraints.txt").is_file():
        return f"{sys.executable} -m pip install -c constraints.txt -e '.{brackets}'"
    return f"{sys.executable} -m pip install 'restage{brackets}'"


def reinstall_command() -> str:
    """Return the command that installs restage anew: that of its checkout, if there is one."""
    is_clone = (REPOSITORY / "Makefile").is_file()
    return "make clean demo" if is_clone else f"{sys.executable} -m pip install --force-reinstall restage"


def check_python() -> Iterator[Finding]:
    """Check version and word size, and whether this is an environment of its own."""
    version, bits = platform.python_version(), 8 * struct.calcsize("P")
    is_fine = sys.version_info >= (3, 11) and bits == 64
    advice = "" if is_fine else f"Install a 64-bit Python 3.11 or newer, then: {reinstall_command()}"
    yield Finding("interpreter", f"{version}, {bits} bits, {sys.executable}", advice, is_problem=not is_fine)
    if sys.prefix == sys.base_prefix:
        advice = f"In an environment of its own other packages cannot interfere: {sys.executable} -m venv .venv"
        yield Finding("environment", "the system's own", advice)


def check_restage() -> Iterator[Finding]:
    """Report version, commit, and where restage is imported from."""
    commit, plus, changes = git_commit().partition("+")
    found = f"{restage.__version__}, commit {commit[:12]}{plus}{changes}, {REPOSITORY / 'restage'}"
    is_installed = "restage" in installed_versions()
    advice = "" if is_installed else f"It runs from its folder but is not installed; install it: {_install_command()}"
    yield Finding("restage", found, advice)


def check_packages() -> Iterator[Finding]:
    """Check that every dependency is installed, within its range, and as tested."""
    versions, constraints = installed_versions(), read_constraints()
    asked = [requirement for requirement in restage_requirements()[""] if _applies(requirement, "")]
    broken = [requirement for requirement in asked if not _is_met(requirement, versions)]
    for requirement in broken:
        version = versions.get(canonicalize_name(requirement.name))
        found = "missing" if version is None else f"{version}, needed is {requirement.specifier}"
        yield Finding(requirement.name, found, _install_command(), is_problem=True)
    yield Finding("dependencies", f"{len(asked) - len(broken)} of {len(asked)} in range")
    others = [
        f"{name} {versions[name]} (tested: {tested})"
        for name, tested in constraints.items()
        if name in versions and versions[name].split("+")[0] != tested
    ]
    if constraints:
        advice = f"If something misbehaves: pip check; {_install_command('dev,view')}" if others else ""
        yield Finding("constraints.txt", ", ".join(others) or "all versions are as tested", advice)


def check_extras() -> Iterator[Finding]:
    """Report for each extra that it is installed, or the command that installs it."""
    versions = installed_versions()
    is_clone = (REPOSITORY / "pyproject.toml").is_file()
    for extra, asked in sorted(restage_requirements().items()):
        missing = [requirement.name for requirement in asked if not _is_met(requirement, versions)]
        use = f" ({EXTRA_USES[extra]})" if extra in EXTRA_USES else ""
        found = f"missing or too old: {', '.join(missing)}{use}" if missing else f"installed{use}"
        if extra and (is_clone or extra not in OF_A_CLONE):
            yield Finding(f"restage[{extra}]", found, _install_command(extra) if missing else "")


def check_traps() -> Iterator[Finding]:
    """Look for packages that are known to cost hours where they do not belong, and that pip does not object to."""
    traps = list(find_traps(installed_versions(), has_gpu=bool(query_gpus())))
    yield from traps or [Finding("known traps", "none found")]


def find_traps(versions: Mapping[str, str], *, has_gpu: bool) -> Iterator[Finding]:
    """Look for traps among installed versions, which are given by normalized name."""
    torch, vision = versions.get("torch", ""), versions.get("torchvision", "")
    cuda_parts = [name for name in versions if name.startswith("nvidia-")]
    if not has_gpu and (cuda_parts or "+cu" in torch):
        found = f"torch {torch} brings {len(cuda_parts)} nvidia packages, but there is no NVIDIA GPU"
        smaller = f"pip install torch=={torch.split('+')[0]} --index-url https://download.pytorch.org/whl/cpu"
        yield Finding("torch for CUDA", found, f"It works but takes several GB more than needed; smaller: {smaller}")
    if vision and "+cpu" in torch and "+cpu" not in vision:
        found = f"{vision} for CUDA beside torch {torch}; importing it can fail"
        yield Finding("torchvision", found, "Nothing here needs it: pip uninstall torchvision")

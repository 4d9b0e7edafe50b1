"""Checks of Python and its packages: versions against ranges and constraints, extras, and known traps."""

from __future__ import annotations

import importlib.metadata
import platform
import struct
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement

import restage
from restage.doctor.findings import Finding
from restage.run.environment import git_commit

__all__ = ["check_extras", "check_packages", "check_python", "check_restage", "check_traps"]

OLDEST_PYTHON = (3, 11)
REPOSITORY = Path(restage.__file__).parents[1]
EXTRA_USES = {
    "colmap": "cameras of plain photographs",
    "dev": "tests and checks",
    "view": "restage view",
}


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by normalised name."""
    return {
        _normal(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }


def requirements_of(package: str) -> list[Requirement]:
    """What an installed distribution asks for; nothing if it is not installed."""
    try:
        texts = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(Requirement(text))
        except InvalidRequirement:
            continue  # old metadata of other people's packages
    return found


class Asked(NamedTuple):
    """What restage itself asks for."""

    always: list[Requirement]
    extras: dict[str, list[Requirement]]


def restage_requirements() -> Asked:
    """Dependencies and extras: of the checkout, if this is one, since what pip knows may be older; else of pip."""
    path = REPOSITORY / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text())["project"]
        extras = {name: list(map(Requirement, texts)) for name, texts in project["optional-dependencies"].items()}
        return Asked([found for found in map(Requirement, project["dependencies"]) if _applies(found)], extras)
    asked = requirements_of("restage")
    names = importlib.metadata.metadata("restage").get_all("Provides-Extra") if asked else None
    extras = {name: [found for found in asked if _is_of_extra(found, name)] for name in names or ()}
    return Asked([found for found in asked if _applies(found)], extras)


def read_constraints() -> dict[str, str]:
    """The exact versions that `make` installs, by normalised name; empty outside of a checkout."""
    path = REPOSITORY / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_normal(name): version.strip() for name, version in pairs}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-").strip()


def _install_command(extra: str = "") -> str:
    brackets = f"[{extra}]" if extra else ""
    if (REPOSITORY / "constraints.txt").is_file():
        return f"{sys.executable} -m pip install -c constraints.txt -e '.{brackets}'"
    return f"{sys.executable} -m pip install 'restage{brackets}'"


def check_python() -> Iterator[Finding]:
    """Version, word size, and whether this is an environment of its own."""
    version, bits = platform.python_version(), 8 * struct.calcsize("P")
    is_new_enough = tuple(sys.version_info[:2]) >= OLDEST_PYTHON
    yield Finding(
        group="Python",
        name="interpreter",
        status="ok" if is_new_enough and bits == 64 else "problem",
        found=f"{version}, {bits} bits, {sys.executable}",
        advice="" if is_new_enough and bits == 64 else "Install a 64-bit Python 3.11 or newer, then: make clean demo",
    )
    if sys.prefix == sys.base_prefix:
        advice = "An environment of its own keeps other packages from interfering: make demo makes one."
        yield Finding(group="Python", name="environment", status="note", found="the system's own", advice=advice)


def check_restage() -> Iterator[Finding]:
    """Version, commit, and where it is imported from."""
    versions = installed_versions()
    commit, plus, changes = git_commit().partition("+")
    found = f"{restage.__version__}, commit {commit[:12]}{plus}{changes}, {REPOSITORY / 'restage'}"
    is_installed = "restage" in versions
    yield Finding(
        group="Python",
        name="restage",
        status="ok" if is_installed else "note",
        found=found,
        advice="" if is_installed else f"It runs from its folder but is not installed: {_install_command()}",
    )


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_of_extra(requirement: Requirement, extra: str) -> bool:
    return _applies(requirement, extra) and not _applies(requirement)


def check_packages() -> Iterator[Finding]:
    """Every dependency: there, within its range, and as tested."""
    versions, constraints = installed_versions(), read_constraints()
    asked = restage_requirements().always
    num_fine = 0
    for requirement in asked:
        version = versions.get(_normal(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = "missing" if version is None else f"{version}, needed is {requirement.specifier}"
            yield Finding(
                group="Packages", name=requirement.name, status="problem", found=found, advice=_install_command()
            )
        else:
            num_fine += 1
    if num_fine:
        yield Finding(
            group="Packages",
            name="dependencies",
            status="ok",
            found=f"{num_fine} of {len(asked)} in range",
        )
    others = {
        name: f"{versions[name]} (tested: {tested})"
        for name, tested in constraints.items()
        if name in versions and versions[name].split("+")[0] != tested
    }
    if constraints:
        yield Finding(
            group="Packages",
            name="constraints.txt",
            status="note" if others else "ok",
            found=", ".join(f"{name} {found}" for name, found in others.items()) or "all versions are as tested",
            advice=f"If something misbehaves: pip check; {_install_command('dev,view')}" if others else "",
        )


def check_extras() -> Iterator[Finding]:
    """Each extra: there, or the command that installs it."""
    versions = installed_versions()
    for extra, asked in sorted(restage_requirements().extras.items()):
        missing = [
            requirement.name
            for requirement in asked
            if not requirement.specifier.contains(versions.get(_normal(requirement.name), "0"), prereleases=True)
        ]
        use = f" ({EXTRA_USES[extra]})" if extra in EXTRA_USES else ""
        yield Finding(
            group="Extras",
            name=f"restage[{extra}]",
            status="note" if missing else "ok",
            found=f"missing or too old: {', '.join(missing)}{use}" if missing else f"installed{use}",
            advice=_install_command(extra) if missing else "",
        )


def check_traps() -> Iterator[Finding]:
    """Packages that are known to cost hours where they do not belong."""
    traps = list(find_traps(installed_versions(), has_gpu=_has_nvidia()))
    yield from traps
    if not traps:
        yield Finding(group="Packages", name="known traps", status="ok", found="none of them is here")


def _has_nvidia() -> bool:
    from restage.doctor.machine import query_gpus

    return bool(query_gpus())


def find_traps(versions: Mapping[str, str], *, has_gpu: bool) -> Iterator[Finding]:
    """Traps among installed versions.

    Args:
        versions: By normalised name, as in `installed_versions`.
        has_gpu: Whether the machine has an NVIDIA GPU.
    """
    torch_version = versions.get("torch", "")
    cuda_parts = [name for name in versions if name.startswith("nvidia-")]
    if not has_gpu and (cuda_parts or "+cu" in torch_version):
        yield Finding(
            group="Packages",
            name="torch for CUDA",
            status="note",
            found=f"torch {torch_version} brings {len(cuda_parts)} nvidia packages, but there is no NVIDIA GPU",
            advice="It works but takes several GB more than needed; smaller: "
            f"pip install torch=={torch_version.split('+')[0]} --index-url https://download.pytorch.org/whl/cpu",
        )
    if has_gpu and torch_version.endswith("+cpu"):
        yield Finding(
            group="Packages",
            name="torch for CPU",
            status="note",
            found=f"torch {torch_version} cannot use the GPU of this machine",
            advice=f"pip install --force-reinstall torch=={torch_version.split('+')[0]}",
        )
    if "nerfstudio" in versions:
        numpy_text = f" and numpy {versions['numpy']}" if versions.get("numpy", "1").split(".")[0] != "1" else ""
        yield Finding(
            group="Packages",
            name="nerfstudio",
            status="note",
            found=f"installed beside restage, with viser {versions.get('viser', 'missing')}{numpy_text}",
            advice="It needs numpy < 2 and viser 0.2.7, the viewer viser 1: make nerfstudio gives it its own place.",
        )
    if "gsplat" in versions and not has_gpu:
        yield Finding(
            group="Packages",
            name="gsplat",
            status="note",
            found=f"{versions['gsplat']}, which has no CPU path",
            advice="Nothing to do: without a GPU the rasterizer numba_cpu is used.",
        )
    if "torchvision" in versions and "+cpu" in torch_version and "+cpu" not in versions["torchvision"]:
        yield Finding(
            group="Packages",
            name="torchvision",
            status="note",
            found=f"{versions['torchvision']} for CUDA beside torch {torch_version}; importing it can fail",
            advice="Nothing here needs it: pip uninstall torchvision",
        )

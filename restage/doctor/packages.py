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
    """Return the version of every installed distribution by its normalized name."""
    return {
        _normal(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }


def requirements_of(package: str) -> list[Requirement]:
    """Return what an installed distribution requires; nothing if it is not installed."""
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
    """What restage itself requires."""

    always: list[Requirement]
    extras: dict[str, list[Requirement]]


def restage_requirements() -> Asked:
    """Return dependencies and extras: of a checkout its own, since pip's record may be older; else pip's record."""
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
    """Return the exact versions that `make` installs by normalized name; nothing outside a checkout."""
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
    """Check version and word size, and whether this is an environment of its own."""
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
        advice = "In an environment of its own other packages cannot interfere; make demo makes one."
        yield Finding(group="Python", name="environment", status="note", found="the system's own", advice=advice)


def check_restage() -> Iterator[Finding]:
    """Report version, commit, and where restage is imported from."""
    versions = installed_versions()
    commit, plus, changes = git_commit().partition("+")
    found = f"{restage.__version__}, commit {commit[:12]}{plus}{changes}, {REPOSITORY / 'restage'}"
    is_installed = "restage" in versions
    yield Finding(
        group="Python",
        name="restage",
        status="ok" if is_installed else "note",
        found=found,
        advice=""
        if is_installed
        else f"It runs from its folder but is not installed; install it: {_install_command()}",
    )


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_of_extra(requirement: Requirement, extra: str) -> bool:
    return _applies(requirement, extra) and not _applies(requirement)


def check_packages() -> Iterator[Finding]:
    """Check that every dependency is installed, within its range, and as tested."""
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
    """Report for each extra that it is installed, or the command that installs it."""
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
    """Look for packages that are known to cost hours where they do not belong."""
    traps = list(find_traps(installed_versions(), has_gpu=_has_nvidia()))
    yield from traps
    if not traps:
        yield Finding(group="Packages", name="known traps", status="ok", found="none found")


def _has_nvidia() -> bool:
    from restage.doctor.machine import query_gpus

    return bool(query_gpus())


def find_traps(versions: Mapping[str, str], *, has_gpu: bool) -> Iterator[Finding]:
    """Traps among installed versions.

    Args:
        versions: Versions by normalised name, as in `installed_versions`.
        has_gpu: Whether the machine has an NVIDIA GPU.
    """
    torch_version, vision_version = versions.get("torch", ""), versions.get("torchvision", "")
    tested_torch = f"torch=={torch_version.split('+')[0]}"
    cuda_parts = [name for name in versions if name.startswith("nvidia-")]
    numpy_text = f" and numpy {versions['numpy']}" if versions.get("numpy", "1").split(".")[0] != "1" else ""
    traps = (
        (
            "torch for CUDA",
            not has_gpu and (cuda_parts or "+cu" in torch_version),
            f"torch {torch_version} brings {len(cuda_parts)} nvidia packages, but there is no NVIDIA GPU",
            "It works but takes several GB more than needed; smaller: "
            f"pip install {tested_torch} --index-url https://download.pytorch.org/whl/cpu",
        ),
        (
            "torch for CPU",
            has_gpu and torch_version.endswith("+cpu"),
            f"torch {torch_version} cannot use the GPU of this machine",
            f"pip install --force-reinstall {tested_torch}",
        ),
        (
            "nerfstudio",
            "nerfstudio" in versions,
            f"installed beside restage, with viser {versions.get('viser', 'missing')}{numpy_text}",
            "It needs numpy < 2 and viser 0.2.7, but the viewer needs viser 1; make nerfstudio keeps them apart.",
        ),
        (
            "gsplat",
            "gsplat" in versions and not has_gpu,
            f"{versions.get('gsplat')}, which has no CPU path",
            "Nothing to do: without a GPU the rasterizer numba_cpu is used.",
        ),
        (
            "torchvision",
            vision_version and "+cpu" in torch_version and "+cpu" not in vision_version,
            f"{vision_version} for CUDA beside torch {torch_version}; importing it can fail",
            "Nothing here needs it: pip uninstall torchvision",
        ),
    )
    for name, is_here, found, advice in traps:
        if is_here:
            yield Finding(group="Packages", name=name, status="note", found=found, advice=advice)

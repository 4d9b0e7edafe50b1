"""Settings of the whole test suite: threads, no network, no caches outside the test's folder, marks that skip."""

from __future__ import annotations

import os
import sys

# Else each worker, and each process that a test starts, would compile the whole package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before torch and numba are imported: two OpenMP pools on the same cores stall each other.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import inspect  # noqa: E402
import shutil  # noqa: E402
import socket  # noqa: E402
import tempfile  # noqa: E402
import types  # noqa: E402
import typing  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from beartype.roar import BeartypeCallHintViolation  # noqa: E402

from tests.shared import SHARED_FOLDER, only_worker  # noqa: E402

REPOSITORY = Path(__file__).parent.parent

with contextlib.suppress(ImportError):  # nerfstudio's environment has no hypothesis
    from hypothesis import HealthCheck, settings

    # How long an example takes says more about the machine's load than about our code. In CI every run draws the same
    # examples, so that a change that breaks nothing never fails there.
    settings.register_profile(
        "restage", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
    )
    settings.load_profile("restage")


_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the option --jaxtyping-packages decorates all that it imports with; as strict as jaxtyping's, and faster.

    jaxtyping binds the arguments of each call to name them in errors, and checks them twice. Here the type checker
    does it once, for functions with shapes while their axes are held together, for others alone.
    """

    def decorate(item: Any) -> Any:
        if isinstance(item, type):
            # As jaxtyping does, classes are checked where their fields are filled.
            if dataclasses.is_dataclass(item) and "__init__" in vars(item):
                item.__init__ = decorate(vars(item)["__init__"])
            return item
        if isinstance(item, types.FunctionType):
            # Names that only type checkers import cannot be looked up here; jaxtyping knows how to leave them out.
            with contextlib.suppress(Exception):
                told = str(typing.get_type_hints(item))
                if "jaxtyping." not in told:
                    return typechecker(item)
                # What a generator yields is looked at while another function's axes are held, and axes of the form
                # "{n}" need the arguments by name: jaxtyping knows how.
                if not inspect.isgeneratorfunction(item) and "{" not in told[1:-1]:
                    return _with_axes(typechecker(item))
        return _jaxtyped(typechecker=typechecker)(item)

    return decorate


def _with_axes(checked: Callable[..., Any]) -> Callable[..., Any]:
    """Hold the sizes of named axes together over each call."""
    axes = _jaxtyped("context")

    @functools.wraps(checked)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            with axes:
                return checked(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise jaxtyping.TypeCheckError(f"An annotation does not hold. {error}") from None

    return call


jaxtyping.jaxtyped = jaxtyped


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--run-docs", action="store_true", help="also run the shell blocks of the documentation")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        _compile_kernels_one_at_a_time()
    else:
        os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="restage-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED_FOLDER), ignore_errors=True)


def _compile_kernels_one_at_a_time() -> None:
    """Let one worker at a time compile kernels, so that the others find them in numba's cache."""
    from numba.core.dispatcher import Dispatcher

    compile_kernel = Dispatcher.compile

    def compile_alone(self: Dispatcher, sig: Any) -> Any:
        with only_worker("kernels"):
            return compile_kernel(self, sig)

    Dispatcher.compile = compile_alone


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


LONGEST_FIRST = (
    "edit/methods/test_methods", "test_ray", "studies/test_study", "view/test_browser", "test_recipes",
    "pairs/test_campaign", "view/test_session", "edit/test_elsewhere", "report/test_present",
    "diffusion/test_pair_sampler", "edit/clips/test_methods", "miniature/test_generate_benchmark",
    "diffusion/test_branches", "test_borders", "train/test_edit_model", "miniature/test_training",
    "diagnose/test_retraining",
)  # fmt: skip
"""Files that take longest, so that at the end no worker is left alone with one: a file stays with one worker."""


@pytest.hookimpl(optionalhook=True)  # nerfstudio's environment has no xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than cores, since tests that wait for other processes leave theirs idle."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ranks = {REPOSITORY / "tests" / f"{name}.py": rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    reasons = {"nerfstudio": "needs .venv-nerfstudio"} if not (REPOSITORY / ".venv-nerfstudio").exists() else {}
    if not config.getoption("--run-slow"):
        reasons["slow"] = "slow; runs with --run-slow"
    if not config.getoption("--run-docs"):
        reasons["docs"] = "runs with --run-docs: make test-docs"
    if any("gpu" in item.keywords for item in items) and not _has_gpu():
        reasons["gpu"] = "needs a CUDA device"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines, so that no test comes to depend on them."""
    connect = socket.socket.connect

    def guarded_connect(self: socket.socket, address: Any) -> None:
        is_local = self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not is_local:
            raise RuntimeError(f"a test tried to connect to {address}; tests use no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The name of a device that is not the CPU, on which gsplat draws; see tests/other_device.py."""
    from tests.scenes.fake_gsplat import gsplat_elsewhere

    with gsplat_elsewhere() as device:
        yield device

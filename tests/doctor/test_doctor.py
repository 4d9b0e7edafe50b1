from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from restage import doctor
from restage.cli import run
from restage.doctor import Finding, examine, is_healthy, machine, packages, to_json
from restage.records import InputError

Findings = dict[str, Finding]


def by_name(findings: Iterable[Finding]) -> Findings:
    return {finding.name: finding for finding in findings}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed versions, for a test to change."""
    found = packages.installed_versions()
    monkeypatch.setattr(packages, "installed_versions", lambda: found)
    return found


def gpu(**changes: float | str) -> machine.Gpu:
    plain = machine.Gpu(index=0, name="H200", total_mib=143771.0, used_mib=0.0, busy_percent=0.0, capability=9.0)
    return plain._replace(**changes)


def test_this_machine_passes_and_every_line_that_is_not_ok_says_what_to_do() -> None:
    findings = list(examine())
    assert is_healthy(findings), [finding for finding in findings if finding.status == "problem"]
    assert all(finding.advice for finding in findings if finding.status != "ok")
    names = by_name(findings)
    assert {"interpreter", "dependencies", "processor", "memory", "OpenMP", "ffmpeg", "hub", "nerfstudio"} <= set(names)
    groups = list(dict.fromkeys(finding.group for finding in findings))
    assert groups == ["Python", "Packages", "Extras", "Machine", "Threads", "Editors", "Places"]


def test_a_problem_without_advice_is_refused() -> None:
    with pytest.raises(InputError, match="needs advice"):
        Finding("disk", "full", is_problem=True)


def test_a_missing_package_and_one_out_of_range_are_problems(versions: dict[str, str]) -> None:
    del versions["rapidfuzz"]
    versions["torch"] = "2.4.0"
    found = by_name(packages.check_packages())
    assert found["rapidfuzz"].status == found["torch"].status == "problem"
    assert found["torch"].found == "2.4.0, needed is >=2.6" and "pip install" in found["torch"].advice


def test_another_version_than_the_tested_one_is_a_note(versions: dict[str, str]) -> None:
    versions["numba"] = "0.99.0"
    found = by_name(packages.check_packages())["constraints.txt"]
    assert found.status == "note" and "numba 0.99.0 (tested: 0.68.1)" in found.found


def test_a_missing_extra_names_its_use_and_the_command_that_installs_it(versions: dict[str, str]) -> None:
    versions.pop("viser", None)
    found = by_name(packages.check_extras())["restage[view]"]
    assert found.status == "note" and "viser" in found.found and "restage view" in found.found
    assert "[view]'" in found.advice


@pytest.mark.parametrize(
    ("installed", "has_gpu", "name"),
    [
        ({"torch": "2.13.0", "nvidia-cudnn-cu12": "9.1"}, False, "torch for CUDA"),
        ({"torch": "2.13.0+cu128"}, False, "torch for CUDA"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, False, "torchvision"),
    ],
)
def test_each_known_trap_is_seen(installed: dict[str, str], has_gpu: bool, name: str) -> None:
    (trap,) = packages.find_traps(installed, has_gpu=has_gpu)
    assert trap.name == name and trap.status == "note"


def test_versions_that_belong_together_are_no_trap() -> None:
    assert not list(packages.find_traps({"torch": "2.13.0+cu128", "gsplat": "1.5.3", "viser": "1.1.1"}, has_gpu=True))
    assert not list(packages.find_traps({"torch": "2.13.0+cpu", "numpy": "2.4.6"}, has_gpu=False))


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packages, "sys", SimpleNamespace(version_info=(3, 9, 2), executable="p", prefix="", base_prefix="")
    )
    found = by_name(packages.check_python())
    assert found["interpreter"].status == "problem" and found["environment"].status == "note"


def test_one_core_and_little_memory_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_processor", lambda: machine.Processor("tiny", 64, 64, 1.5, frozenset()))
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=2**31, available=2**30))
    (processor, bf16), (memory,) = machine.check_processor(), machine.check_memory()
    assert processor.status == memory.status == bf16.status == "note"
    assert "64 of 64 cores" in processor.found and "1.5 cores by quota" in processor.found


def test_a_gpu_that_somebody_uses_is_noted_and_a_free_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_gpus", lambda: [gpu(), gpu(index=1, used_mib=90_000.0, capability=7.5)])
    monkeypatch.setattr(machine, "query_torch_cuda", lambda: "12.8")
    found = by_name(machine.check_gpus())
    assert found["GPU 0"].status == "ok" and found["GPU 1"].status == "note"
    assert found["GPU 0"].found.endswith(", bf16") and found["GPU 1"].found.endswith("no bf16")


def test_a_gpu_with_a_torch_that_cannot_use_it_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_gpus", lambda: [gpu()])
    monkeypatch.setattr(machine, "query_torch_cuda", lambda: "")
    assert by_name(machine.check_gpus())["torch and GPU"].status == "note"


def test_the_drivers_answer_is_read_also_where_it_says_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "0, NVIDIA H200, 143771, 4, 0, 9.0\n1, NVIDIA H200 MIG 1g.18gb, 16384, [N/A], [N/A], 9.0\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=answer))
    first, second = machine.query_gpus()
    assert (first.total_mib, first.capability, second.used_mib) == (143771.0, 9.0, 0.0)

    def fail(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert machine.query_gpus() == []


@pytest.mark.parametrize(
    ("pools", "environment", "status"),
    [
        (["/a/libgomp.so.1", "/b/libomp.so"], {}, "note"),
        (["/a/libgomp.so.1", "/b/libomp.so"], {"OMP_WAIT_POLICY": "passive"}, "ok"),
        (["/a/libgomp.so.1", "/b/libomp.so"], {"OMP_NUM_THREADS": "1"}, "ok"),
        (["/a/libgomp.so.1"], {}, "ok"),
    ],
)
def test_two_openmp_pools_that_spin_are_noted(
    pools: list[str], environment: dict[str, str], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "query_threads", lambda *, starts: (pools, "omp"))
    monkeypatch.setattr(machine, "query_processor", lambda: machine.Processor("", 8, 8, None, frozenset()))
    assert by_name(machine.check_threads(environment))["OpenMP"].status == status


def test_more_threads_than_cores_and_a_lonely_work_queue_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_processor", lambda: machine.Processor("", 64, 2, None, frozenset()))
    monkeypatch.setattr(machine, "query_threads", lambda *, starts: ([], "workqueue"))
    found = by_name(machine.check_threads({"OMP_NUM_THREADS": "32", "NUMBA_NUM_THREADS": "2"}))
    assert found["settings"].advice == "There are only 2 cores: unset OMP_NUM_THREADS"
    assert found["numba"].status == "note"


def test_threads_that_do_not_start_are_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "raise ImportError('libc10.so: cannot open shared object file')"
    monkeypatch.setattr(machine, "STARTS_THREADS", program)
    with pytest.raises(RuntimeError, match="does not start: ImportError: libc10.so"):
        machine.query_threads(starts=True)


def test_threads_are_known_without_starting_torch_and_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    started = machine.query_threads(starts=True)
    monkeypatch.setattr(machine, "STARTS_THREADS", "raise RuntimeError('started')")
    assert machine.query_threads() == started
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "workqueue")
    with pytest.raises(RuntimeError, match="started"):
        machine.query_threads()


def test_the_cuda_version_of_torch_is_read_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    assert machine.query_torch_cuda() == (torch.version.cuda or "")
    monkeypatch.setattr(machine, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    (tmp_path / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '12.8'\nhip = None\n")
    assert machine.query_torch_cuda() == "12.8"


@pytest.mark.parametrize(("room_gib", "status"), [(0.2, "problem"), (2.0, "note"), (50.0, "ok")])
def test_a_full_disk_is_seen(room_gib: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "free_gib", lambda path: room_gib)
    assert by_name(machine.check_disk(tmp_path / "not" / "yet"))["runs"].status == status


def test_folders_that_cannot_be_written_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "is_writable", lambda path: False)
    found = by_name(machine.check_disk(tmp_path))
    assert found["runs"].status == "problem" and found["model cache"].status == "note"


def no_ffmpeg() -> tuple[str, str]:
    raise RuntimeError("No ffmpeg exe could be found")


@pytest.mark.parametrize("query", [no_ffmpeg, lambda: ("/bin/ffmpeg", "V..... mpeg4")])
def test_without_the_encoder_of_clips_there_is_a_problem(
    query: Callable[[], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "query_ffmpeg", query)
    assert by_name(machine.check_ffmpeg())["ffmpeg"].status == "problem"


def test_models_that_a_clone_lacks_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "assets" / "clip").mkdir(parents=True)
    (tmp_path / "assets" / "clip" / "model.safetensors").write_bytes(b"version https://git-lfs")
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    assert by_name(machine.check_models())["shipped models"].found.endswith("text_to_image, clip, edit_model")


def test_the_hub_is_asked_only_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(machine, "reach_hub", refuse)
    assert by_name(machine.check_hub(is_online=False))["hub"].status == "ok"
    monkeypatch.setattr(machine, "reach_hub", lambda url: "no route to host")
    assert by_name(machine.check_hub(is_online=True))["hub"].status == "note"
    monkeypatch.setattr(machine, "reach_hub", lambda url: "")
    assert by_name(machine.check_hub(is_online=True))["hub"].found.endswith("answers")


def test_a_hub_that_answers_with_an_error_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: object, timeout: float) -> None:
        raise urllib.error.HTTPError("https://huggingface.co", 403, "Forbidden", None, None)  # pyright: ignore

    monkeypatch.setattr(machine.urllib.request, "urlopen", answer)
    assert machine.reach_hub() == ""


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        ("exit 0", "ok", "env"),
        ("echo nerfstudio 1.1.5 has requirement numpy'<'2, but you have numpy 2.1.0.; exit 1", "note", "numpy 2.1.0"),
        (None, "note", "does not start: PermissionError"),
    ],
)
def test_an_environment_of_nerfstudio_is_as_good_as_pip_says(
    answer: str | None, status: str, word: str, tmp_path: Path
) -> None:
    folder = tmp_path / "env"
    assert "make nerfstudio" in by_name(machine.check_nerfstudio(folder))["nerfstudio"].advice
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o644 if answer is None else 0o755)
    found = by_name(machine.check_nerfstudio(folder))["nerfstudio"]
    assert found.status == status and word in found.found


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Finding]:
        raise ImportError("libc10.so: cannot open shared object file")

    def fine() -> list[Finding]:
        return [Finding("memory", "plenty")]

    monkeypatch.setattr(doctor, "list_checks", lambda **options: {"Machine": {"gpus": fail, "memory": fine}})
    broken, memory = examine()
    assert broken.status == "problem" and "libc10.so" in broken.found
    assert memory == Finding("memory", "plenty", group="Machine")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_exit_code_is_1_only_for_a_problem(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("disk", "x", "" if status == "ok" else "y", is_problem=status == "problem", group="Places")
    monkeypatch.setattr(doctor, "examine", lambda **options: [finding])
    for flags in ([], ["--json"]):
        try:
            assert run(["doctor", *flags]) == code
        except SystemExit as caught:
            assert caught.code == code
        out = capsys.readouterr().out
        assert status in out
    assert json.loads(out) == json.loads(to_json([finding]))
    assert json.loads(out)["ok"] is (code == 0)

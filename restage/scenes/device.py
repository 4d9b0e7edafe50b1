"""Where scenes are drawn and models compute: what a user asks for as a torch device, and what records say of it.

Splats, pictures and models of one piece of work lie on one device from start to end, and come to the CPU only to be
saved, shown or scored. Cameras stay on the CPU, where their few numbers are read: whatever draws or projects takes them
to the device of the splats or points.
"""

from __future__ import annotations

import re
import sys

from restage.records import InputError, MissingExtra
from restage.run.progress import say

__all__ = ["choose_device", "describe_device", "made_on"]


def choose_device(name: str) -> str:
    """Return the name of a torch device for `auto`, `cpu`, `cuda` or `cuda:N`, N being the number of a GPU from 0.

    `auto` is `cuda` where torch sees a GPU and gsplat can draw on it, else `cpu`, with a word on a GPU that cannot be
    used.

    Raises:
        InputError: there is no such device, or what draws on it is missing.
    """
    if name == "cpu":
        return name
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"unknown device {name!r}; expected auto, cpu, cuda, or cuda:N with the number N of a GPU")
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    problem = _why_not(int(name.partition(":")[2] or 0))
    if problem is None:
        return "cuda" if name == "auto" else name
    if name != "auto":
        raise problem
    say(f"computing on the CPU, for the GPU cannot be used: {problem}", file=sys.stderr)
    return "cpu"


def _why_not(index: int) -> InputError | None:
    """What keeps a GPU from being used; None for nothing."""
    import torch

    if not torch.backends.cuda.is_built():
        return InputError(f"torch {torch.__version__} is built without CUDA; see https://pytorch.org/get-started")
    if not torch.cuda.is_available():
        return InputError("torch sees no NVIDIA GPU; is its driver installed, and CUDA_VISIBLE_DEVICES not empty?")
    count = torch.cuda.device_count()
    if index >= count:
        return InputError(f"there is no GPU cuda:{index}; expected cuda:0" + (f" to cuda:{count - 1}" * (count > 1)))
    try:
        # This compiles the kernels where the installed package has none for this torch, which takes minutes once.
        from gsplat.cuda._backend import _C  # pyright: ignore[reportMissingImports]
    except ImportError:
        return MissingExtra("gsplat", "cuda")
    if _C is None:
        need = f"the CUDA toolkit {torch.version.cuda} (nvcc)"
        return InputError(f"gsplat compiles its kernels at its first use and finds no compiler; install {need}")
    return None


def made_on(device: str) -> dict[str, str]:
    """What a record says of the device that something was made on, such as `{"device": "cuda, NVIDIA H200"}`.

    Of the CPU nothing, as in records of versions that knew no other. GPUs round differently and add up in no fixed
    order, so what is made there is not the same bit for bit.
    """
    return {} if device == "cpu" else {"device": describe_device(device)}


def describe_device(device: str) -> str:
    """The type of a device, and the model of a GPU."""
    if device.partition(":")[0] != "cuda":
        return device
    import torch

    return f"cuda, {torch.cuda.get_device_name(device)}"

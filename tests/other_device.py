"""A device that is not the CPU, without a GPU: PyTorch's device `lazy`, with tensors whose values the CPU holds.

Whole fits and edits run there, and what a GPU refuses is refused: to meet a tensor of the CPU, to be read by numpy.
(On the device `meta`, which serves the same end elsewhere, tensors have shapes alone.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OTHER", "other_device"]

OTHER = "lazy"
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Operations whose indices may lie on the CPU."""


class OtherTensor(torch.Tensor):
    """A tensor of the other device."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OtherTensor:
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=OTHER,  # pyright: ignore[reportArgumentType]
        )

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"OtherTensor({self.values})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.values.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {OTHER} device type tensor to numpy; use Tensor.cpu() first")

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees operations that make tensors on the other device, or bring some there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._overloadpacket.__name__
    tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    others = [tensor for tensor in tensors if isinstance(tensor, OtherTensor)]
    device = kwargs.get("device")
    if others and name not in ("_to_copy", "copy_"):
        met = [args[0], *args[2:]] if name in INDEXING else tensors
        met = [leaf for leaf in _pytree.tree_leaves(met) if isinstance(leaf, torch.Tensor)]
        strangers = [tensor for tensor in met if not isinstance(tensor, OtherTensor) and tensor.ndim > 0]
        if strangers:
            raise RuntimeError(f"expected all tensors on the same device, got {OTHER} and cpu in {func}")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        is_other = torch.device(device).type == OTHER
    else:
        is_other = bool(others) and (name != "copy_" or isinstance(args[0], OtherTensor))
    inside = _pytree.tree_map(lambda leaf: leaf.values if isinstance(leaf, OtherTensor) else leaf, (args, kwargs))
    found = func(*inside[0], **inside[1])
    if func._schema.name.endswith("_") and not name.startswith("_"):
        return args[0]  # in place
    if not is_other:
        return found
    return _pytree.tree_map(lambda leaf: OtherTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, found)


@contextmanager
def other_device() -> Iterator[str]:
    """Within it there is another device; yields its name."""
    before = torch._C._only_lift_cpu_tensors()  # pyright: ignore[reportAttributeAccessIssue]
    # Otherwise lists of numbers would become tensors of the real device, out of sight of the operations above.
    torch._C._set_only_lift_cpu_tensors(True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _Factories():
            yield OTHER
    finally:
        torch._C._set_only_lift_cpu_tensors(before)  # pyright: ignore[reportAttributeAccessIssue]

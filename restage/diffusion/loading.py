"""The one border at which parts of models come in from folders: safetensors alone, and whole, or one line of error.

Pickled weights run code when they are read, and diffusers and transformers fill what a file lacks with random numbers.
Every command that opens a model of either library opens its parts here.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import transformers
from jaxtyping import Int
from msgspec import Meta
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTokenizer, ProcessorMixin

from restage.records import InputError, from_plain, read_json

__all__ = ["check_tokens", "load_model", "load_pipeline", "load_tokenizer", "padded_ids", "pictures_only"]
__all__ += ["read_config"]

PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

_Count: Any = Annotated[int, Meta(ge=1, le=10**7)]
_FIELDS: dict[str, Any] = {
    "_class_name": str,
    "model_type": str,
    "in_channels": _Count,
    "out_channels": _Count | None,
    "cross_attention_dim": _Count,
    "sample_size": _Count | tuple[_Count, ...],  # a pair; msgspec 0.22 crashes on a bounded number or a pair
    "down_block_types": tuple[str, ...],
    "addition_embed_type": str | None,
    "latent_channels": _Count,
    "scaling_factor": Annotated[float, Meta(gt=0)],
    "block_out_channels": tuple[_Count, ...],
    "encoder_block_out_channels": tuple[_Count, ...],
    "hidden_size": _Count,
    "max_position_embeddings": _Count,
    "vocab_size": _Count,
    "text_config": dict[str, Any],
    "vision_config": dict[str, Any],
}
"""Fields of a config.json that this package reads; the library that builds the model checks the others."""


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]  # file of each tensor


def _require_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    files = [path for path in (folder, folder.parent, *folder.parent.glob("*")) if path.is_file()]
    single = sorted(path for path in files if path.suffix in PICKLED | {".safetensors"})
    if single:
        convert = (
            "from diffusers import StableDiffusionPipeline as P; "
            f"P.from_single_file('{single[0]}').save_pretrained('{single[0].with_suffix('')}')"
        )
        found = "pickled weights, which run code when they are read" if single[0].suffix in PICKLED else "one file"
        raise InputError(
            f"{folder} does not exist, and {single[0]} is {found}; expected a folder of diffusers. "
            f'If you trust the file, convert it: python -c "{convert}"'
        )
    raise InputError(f"{folder} does not exist; expected a folder that diffusers or transformers saved")


def _require_safetensors(cls: Any, folder: Path, stem: str) -> None:
    """See that the weights are there, and that each file is as long as its header says."""
    index = folder / f"{stem}.safetensors.index.json"
    whole = folder / f"{stem}.safetensors"
    placed = read_json(index, _Index).weight_map if index.is_file() else {}
    if not placed and not whole.is_file():
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
        if not pickled:
            raise InputError(f"{folder} holds no weights: {whole.name} is missing")
        library, name = cls.__module__.partition(".")[0], cls.__name__
        convert = f"from {library} import {name} as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise InputError(
            f"{folder} holds pickled weights alone ({', '.join(pickled)}), which run code when they are read; expected "
            f'{whole.name}. If you trust them, convert them: python -c "{convert}"'
        )
    names = {*placed.values()} | ({whole.name} if whole.is_file() else set())
    for name in sorted(names):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise InputError(
                f"{index} names {name!r}, which is not there; expected all files of the weights in {folder}"
            )
        try:
            with safe_open(path, "pt") as file:
                found = set(file.keys())
        except Exception as error:  # noqa: BLE001 - of a type that safetensors does not document
            raise InputError(f"{path} is not whole, or no safetensors file: {error}") from None
        lost = sorted({key for key, file in placed.items() if file == name} - found)
        if lost:
            raise InputError(f"{path} lacks {len(lost)} of the tensors that {index.name} names, such as {lost[0]}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a part; fields that this package uses have the types that it expects."""
    path = folder / "config.json"
    config = read_json(path, dict[str, Any])
    for field, kind in _FIELDS.items():
        if field in config:
            from_plain(config[field], kind, where=f"{path}: {field}")
    return config


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises into one line, and keep its own lines and bars out of ours."""
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.disable_progress_bar()
    for log in logs:
        log.set_verbosity(log.CRITICAL)
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever a broken file brings about
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" If you want")[0]
        raise InputError(f"{folder} cannot be loaded: {reason}") from None
    finally:
        for log, verbosity in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)


def load_model(
    cls: Any,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    may_lack: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Load a part by its class of diffusers or transformers, from safetensors alone.

    Weights are stored in half precision and computed with in full, which is exact. `may_lack` holds beginnings of the
    names of weights that the caller can do without; `options` go on to the library, such as how to quantize.

    Raises:
        InputError: it is missing, pickled, cut short, of another class, or weights are missing or have wrong shapes.
    """
    _require_folder(folder)
    is_diffusers = issubclass(cls, diffusers.ModelMixin)
    _require_safetensors(cls, folder, "diffusion_pytorch_model" if is_diffusers else "model")
    config = read_config(folder)
    kind = getattr(getattr(cls, "config_class", None), "model_type", None)
    found, expected = (config.get("_class_name"), cls.__name__) if is_diffusers else (config.get("model_type"), kind)
    if expected is not None and found != expected:
        raise InputError(f"{folder / 'config.json'} is of a {found!r}, expected a {expected!r}")
    told = {} if is_diffusers else {"ignore_mismatched_sizes": True}  # told below, in place of a table in the log
    told |= {"local_files_only": True, "use_safetensors": True, "output_loading_info": True, **(options or {})}
    with _one_line(folder):
        model, info = cls.from_pretrained(folder, torch_dtype=dtype, **told)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_lack or ("\0",)))
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    if info["mismatched_keys"]:
        name, *shapes = min(info["mismatched_keys"])
        stored, wanted = (tuple(shape) for shape in shapes)
        raise InputError(f"{folder}: {name} has shape {stored}, by its config.json it has {wanted}")
    return model


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a tokenizer of CLIP."""
    _require_folder(folder)
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        # Without its words transformers makes a tokenizer that knows two.
        raise InputError(f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt")
    with _one_line(folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def pictures_only() -> Iterator[None]:
    """Within it, processors of pictures and clips open without torchvision, which only their clips need."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    before = ProcessorMixin.__dict__["get_attributes"]

    def without_video(cls: Any) -> list[str]:
        return [name for name in before.__func__(cls) if name != "video_processor"]

    ProcessorMixin.get_attributes = classmethod(without_video)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ProcessorMixin.get_attributes = before


def load_pipeline(cls: Any, folder: Path, parts: dict[str, Any]) -> Any:
    """Put a pipeline together from loaded parts, and the tokenizers, processors and scheduler of its folder."""
    with _one_line(folder), pictures_only():
        return cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, **parts)


def padded_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Int[Tensor, "texts length"]:
    """Return the tokens of texts, padded to a length; a text that is longer is refused."""
    ids = tokenizer(list(texts), padding="max_length", max_length=length)["input_ids"]
    for text, row in zip(texts, ids, strict=True):
        if len(row) > length:
            raise InputError(f"a text of {len(row)} tokens is too long, at most {length}: '{text[:80]}'")
    return torch.tensor(ids)


def check_tokens(tokenizer: Any, text_config: Any, folder: Path) -> None:
    """See that every token of a tokenizer has its embedding."""
    if len(tokenizer) > text_config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the text encoder knows {text_config.vocab_size}; "
            "choose the tokenizer that belongs to it"
        )

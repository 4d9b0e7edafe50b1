"""Turns a text-to-image UNet into an edit UNet: input channels for the original, and an output for the mask.

Called by training when it starts from a text-to-image model or from an InstructPix2Pix model without mask output.
"""

from __future__ import annotations

import copy
import math

import torch
from diffusers import UNet2DConditionModel

from restage.records import InputError

__all__ = ["START_MASK_PROBABILITY", "add_mask_output", "widen_unet"]

START_MASK_PROBABILITY = 0.05
"""What an untrained mask output says everywhere: most pixels of most edits stay as they are."""


def _resized(layer: torch.nn.Conv2d, inputs: int, outputs: int, new_bias: float) -> torch.nn.Conv2d:
    """Copy a convolution with more channels: new weights are zero, new outputs have the given bias."""
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    size, stride = layer.kernel_size, layer.stride
    resized = torch.nn.Conv2d(inputs, outputs, size, stride, padding)  # pyright: ignore[reportArgumentType]
    old_bias = layer.bias
    assert old_bias is not None and resized.bias is not None
    with torch.no_grad():
        resized.weight.zero_()
        resized.weight[: layer.out_channels, : layer.in_channels] = layer.weight
        resized.bias.fill_(new_bias)
        resized.bias[: layer.out_channels] = old_bias
    return resized.to(layer.weight)


def _with_channels(unet: UNet2DConditionModel, inputs: int, outputs: int) -> UNet2DConditionModel:
    config = {**unet.config, "in_channels": inputs, "out_channels": outputs}
    result = copy.deepcopy(unet)
    logit = math.log(START_MASK_PROBABILITY / (1 - START_MASK_PROBABILITY))
    result.conv_in = _resized(result.conv_in, inputs, result.conv_in.out_channels, 0.0)
    result.conv_out = _resized(result.conv_out, result.conv_out.in_channels, outputs, logit)
    result.register_to_config(**config)
    return result.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def widen_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Turn a text-to-image UNet into an edit UNet that at first predicts exactly what the old one did.

    The new input channels start at zero; the mask output starts at zero weights and a bias that says
    `START_MASK_PROBABILITY`. The old UNet is left as it was.

    Raises:
        InputError: it has other channels than a text-to-image UNet, such as an edit UNet that is already wide.
    """
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs != outputs:
        raise InputError(
            f"only a text-to-image UNet (as many inputs as outputs) can be widened, got {inputs} inputs and "
            f"{outputs} outputs; a UNet that already sees the original is trained on as it is"
        )
    return _with_channels(unet, 2 * inputs, outputs + 1)


def add_mask_output(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give an InstructPix2Pix UNet (2c inputs, c outputs) a mask output that starts as in `widen_unet`.

    Raises:
        InputError: it has other channels.
    """
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs != 2 * outputs:
        raise InputError(f"expected a UNet with twice as many inputs as outputs, got {inputs} and {outputs}")
    return _with_channels(unet, inputs, outputs + 1)

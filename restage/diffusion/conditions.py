"""Conditions that say what a picture shows where: depth, what is the same thing, edges; as control branches take them.

A condition is a named tensor. Depth is inverse depth on a fixed scale, so that near things are bright and the same
depth has the same value in every picture; things are one-hot slots, which say where one ends but not what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from restage.records import InputError

__all__ = ["CHANNELS", "NUM_SLOTS", "Conditions", "as_picture", "invert_depth", "near_depth", "num_channels"]
__all__ += ["slots_of", "stack_conditions"]

NUM_SLOTS = 6
"""Things that are told apart, besides sky and ground."""
CHANNELS = {"depth": 1, "ids": 2 + NUM_SLOTS, "canny": 1}
"""Channels of the conditions that are known; any other is a picture, of 3."""

NEAR_SHARE = 0.02
"""Share of the pixels that are nearer than where inverse depth counts as 1, where nothing else says where that is."""

Conditions = Mapping[str, Float[Tensor, "_ _ _"]]
"""What is known of one picture: channels (`CHANNELS`), rows and columns of each condition, in [0, 1]."""


def num_channels(names: Sequence[str]) -> int:
    """Return the channels of several conditions together."""
    return sum(CHANNELS.get(name, 3) for name in names)


def invert_depth(depth: Float[Tensor, "height width"], near: float) -> Float[Tensor, "1 height width"]:
    """Return `near / depth`, at most 1; z depth in the unit of `near`, not finite or not above 0 where nothing is."""
    is_seen = torch.isfinite(depth) & (depth > 0)
    return torch.where(is_seen, near / torch.where(is_seen, depth, 1.0), 0.0).clamp(max=1.0)[None]


def near_depth(depths: Float[Tensor, "*frames height width"]) -> float:
    """Return the z depth that 2 % of what is seen is nearer than; 1 where nothing is seen."""
    seen = depths[torch.isfinite(depths) & (depths > 0)]
    return float(seen.kthvalue(int(NEAR_SHARE * (len(seen) - 1)) + 1).values) if len(seen) else 1.0


def slots_of(
    ids: Int[Tensor, "height width"], order: Sequence[int] | None = None
) -> Float[Tensor, "channels height width"]:
    """Return sky (0), ground (1) and each thing (2 and up) as a channel; `order` says the slot of each thing.

    Without an order the things get the slots in the order of their ids, whatever numbers these are.
    """
    things = ids[ids > 1].unique().tolist() if order is None else [2 + number for number in range(len(order))]
    order = range(len(things)) if order is None else order
    if len(things) > NUM_SLOTS or any(not 0 <= slot < NUM_SLOTS for slot in order):
        raise InputError(f"at most {NUM_SLOTS} things can be told apart, got {len(things)}")
    channels = torch.zeros(CHANNELS["ids"], *ids.shape, device=ids.device)
    channels[0], channels[1] = ids == 0, ids == 1
    for thing, slot in zip(things, order, strict=True):
        channels[2 + slot] = ids == thing
    return channels


def stack_conditions(
    names: Sequence[str], given: Sequence[Conditions], size: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """Put the named conditions of each picture side by side, at this size; one that a picture lacks is zero."""
    rows = []
    for conditions in given:
        parts = []
        for name in names:
            channels = CHANNELS.get(name, 3)
            found = conditions.get(name)
            if found is None:
                parts.append(torch.zeros(channels, *size))
                continue
            if found.shape[0] != channels:
                raise InputError(f"the condition {name} has {channels} channels, got {found.shape[0]}")
            parts.append(_resized(name, found, size))
        rows.append(torch.cat([part.to(parts[0]) for part in parts]))
    return torch.stack(rows)


def as_picture(
    name: str, condition: Float[Tensor, "channels h w"], size: tuple[int, int]
) -> Float[Tensor, "3 height width"]:
    """Return a condition as public ControlNets were trained on it: a picture, in [0, 1].

    Depth is stretched to the whole range, as MiDaS's is; edges are white on black; everything else is as it is.
    """
    if condition.shape[0] not in (1, 3):
        raise InputError(
            f"a ControlNet takes pictures; give {name} as the color picture that it was trained on, not as ids"
        )
    if name == "depth":
        low, high = condition.amin(), condition.amax()
        condition = (condition - low) / (high - low).clamp_min(1e-6)
    return _resized(name, condition, size).expand(3, -1, -1)


def _resized(name: str, condition: Float[Tensor, "c h w"], size: tuple[int, int]) -> Float[Tensor, "c height width"]:
    height, width = condition.shape[1:]
    if (height, width) == size:
        return condition
    if name == "canny" and height >= size[0] and width >= size[1]:
        return functional.adaptive_max_pool2d(condition, size)  # edges are a pixel wide, and would be lost in part
    # The nearest pixel: between two depths, and two things, there is nothing.
    return functional.interpolate(condition[None], size, mode="nearest-exact")[0]

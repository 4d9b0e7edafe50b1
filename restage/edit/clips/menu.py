"""The menu of clip methods: one line each."""

from restage.edit.clips.carried import Carried
from restage.edit.clips.dreammotion import DreamMotion
from restage.edit.clips.frames import Frozen, Nothing, PerFrame, SharedAttention, TokenFlow
from restage.edit.clips.job import ClipMethod
from restage.edit.clips.through_splats import ThroughSplats
from restage.edit.clips.tune_a_video import TuneAVideo

__all__ = ["CLIP_METHODS"]

CLIP_METHODS: dict[str, type[ClipMethod]] = {
    "nothing": Nothing,
    "frozen": Frozen,
    "per_frame": PerFrame,
    "shared_attention": SharedAttention,
    "tokenflow": TokenFlow,
    "tune_a_video": TuneAVideo,
    "dreammotion": DreamMotion,
    "through_splats": ThroughSplats,
    "carried": Carried,
}

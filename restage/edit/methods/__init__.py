"""The menu of edit methods: one file each, and one line in `METHODS`."""

from restage.edit.job import Method
from restage.edit.methods.controlled import Controlled
from restage.edit.methods.depth_fusion import DepthFusion
from restage.edit.methods.distill import Dds, Sds
from restage.edit.methods.idu import Idu, Igs2gs
from restage.edit.methods.joint import Joint
from restage.edit.methods.pds import DreamCatalyst, Pds
from restage.edit.methods.remove import Remove
from restage.edit.methods.replace_once import Nothing, ReplaceOnce
from restage.edit.methods.restage import Restage
from restage.edit.methods.video import Video

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "nothing": Nothing,
    "replace_once": ReplaceOnce,
    "idu": Idu,
    "igs2gs": Igs2gs,
    "sds": Sds,
    "dds": Dds,
    "pds": Pds,
    "dreamcatalyst": DreamCatalyst,
    "depth_fusion": DepthFusion,
    "controlled": Controlled,
    "joint": Joint,
    "restage": Restage,
    "remove": Remove,
    "video": Video,
}

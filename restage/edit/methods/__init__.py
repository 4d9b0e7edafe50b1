"""The menu of edit methods: one file each, and one line in `METHODS`."""

from restage.edit.job import Method
from restage.edit.methods.dds import Dds
from restage.edit.methods.depth_fusion import DepthFusion
from restage.edit.methods.dreamcatalyst import DreamCatalyst
from restage.edit.methods.idu import Idu
from restage.edit.methods.igs2gs import Igs2gs
from restage.edit.methods.joint import Joint
from restage.edit.methods.nothing import Nothing
from restage.edit.methods.pds import Pds
from restage.edit.methods.replace_once import ReplaceOnce
from restage.edit.methods.restage import Restage
from restage.edit.methods.sds import Sds

__all__ = [
    "METHODS",
    "Dds",
    "DepthFusion",
    "DreamCatalyst",
    "Idu",
    "Igs2gs",
    "Joint",
    "Nothing",
    "Pds",
    "ReplaceOnce",
    "Restage",
    "Sds",
]

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
    "joint": Joint,
    "restage": Restage,
}

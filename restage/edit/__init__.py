"""Edit a splat scene by text: the menu of methods, and what a method gets and yields."""

from restage.edit.dds import Dds
from restage.edit.depth_fusion import DepthFusion
from restage.edit.dreamcatalyst import DreamCatalyst
from restage.edit.idu import Idu
from restage.edit.igs2gs import Igs2gs
from restage.edit.job import EditJob, EditStep, Method
from restage.edit.joint import Joint
from restage.edit.nothing import Nothing
from restage.edit.pds import Pds
from restage.edit.replace_once import ReplaceOnce
from restage.edit.restage import Restage
from restage.edit.sds import Sds

__all__ = [
    "METHODS",
    "Dds",
    "DepthFusion",
    "DreamCatalyst",
    "EditJob",
    "EditStep",
    "Idu",
    "Igs2gs",
    "Joint",
    "Method",
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

"""Edit a splat scene by text: the menu of methods, and what a method gets and yields."""

from restage.edit.idu import Idu
from restage.edit.job import EditJob, EditStep, Method
from restage.edit.nothing import Nothing
from restage.edit.replace_once import ReplaceOnce
from restage.edit.restage import Restage

__all__ = ["METHODS", "EditJob", "EditStep", "Idu", "Method", "Nothing", "ReplaceOnce", "Restage"]

METHODS: dict[str, type[Method]] = {
    "nothing": Nothing,
    "replace_once": ReplaceOnce,
    "idu": Idu,
    "restage": Restage,
}

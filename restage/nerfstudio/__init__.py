"""Restage inside nerfstudio: pipelines that edit a trained nerfacto or splatfacto, and the way back to Restage.

Runs in an environment of its own (`make nerfstudio`), since nerfstudio asks for numpy < 2; type checkers do not see it.
Nothing else of Restage imports this package; `restage/nerfstudio/methods.py` registers its methods with `ns-train`.
"""

import importlib.util

from restage.records import InputError

if importlib.util.find_spec("nerfstudio") is None:
    raise InputError(
        "nerfstudio is not installed here, it has an environment of its own; "
        "run: make nerfstudio, then .venv-nerfstudio/bin/ns-train restage"
    )

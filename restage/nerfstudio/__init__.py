"""Restage inside nerfstudio: pipelines that edit a trained nerfacto or splatfacto, and the way back to Restage.

Runs in an environment of its own (`make nerfstudio`), since nerfstudio asks for numpy < 2. Nothing else of Restage
imports this package; `restage/nerfstudio/methods.py` registers its methods with `ns-train`.
"""

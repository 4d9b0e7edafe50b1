"""Recipes that make the shipped miniature models from nothing: pictures, autoencoder, text-to-image, CLIP, edit model.

Each recipe is a generator of `Progress`, resumable, and ends with a diffusers or transformers folder. Their docstrings
state command, cost, and the figures to expect; `docs/log/` has the runs.
"""

"""Recipes that make the shipped miniature models from nothing: pictures, autoencoder, text-to-image, CLIP, edit model.

They belong to a clone, not to the installed package, which never imports them. Each recipe is a resumable generator of
`Progress` and ends with a diffusers or transformers folder. Their docstrings state the command, the cost and the
figures to expect; `docs/log/` has the runs.
"""

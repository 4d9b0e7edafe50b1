"""Edits a splat scene by text: methods, editors of single views, masks, and the stage that runs them."""

"""Regions of a scene: which splats are meant, as data that is saved, combined, shown and given to edits."""

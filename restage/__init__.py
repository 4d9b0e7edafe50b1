"""Restage edits 3D scenes by text, and shows how well."""

__version__ = "0.1.0"

"""Captures and Gaussian splat scenes: cameras, splats, rasterizers, fitting, and files in and out."""

__all__: list[str] = []

"""Captures and splats as files: nerfstudio folders and PLY."""

from restage.scenes.io.nerfstudio import read_capture, write_capture
from restage.scenes.io.ply import read_points, read_splats, write_points, write_splats

__all__ = ["read_capture", "read_points", "read_splats", "write_capture", "write_points", "write_splats"]

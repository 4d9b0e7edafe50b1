"""Captures and splats as files: nerfstudio, COLMAP or plain photographs in, nerfstudio out; splats as PLY both ways."""

from restage.scenes.io.captures import capture_name, is_capture, read_capture, recognize_capture
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.ply import read_points, read_splats, write_points, write_splats

__all__ = [
    "capture_name",
    "is_capture",
    "read_capture",
    "read_points",
    "read_splats",
    "recognize_capture",
    "write_capture",
    "write_points",
    "write_splats",
]

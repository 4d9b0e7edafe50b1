"""Numba kernels that project splats onto one camera's image, and the way back; one splat after the other.

The chain of small products per splat is written out by component: as PyTorch operations it takes longer than the
blending itself. `no_type_check` keeps the test suite's run-time type checks out of compiled functions.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

__all__ = ["DILATION", "project_backward", "project_forward"]

DILATION = 0.3
"""Added to the variance of each splat on the image, in square pixels, so that none falls between pixels."""
DILATION_32 = np.float32(DILATION)
ONE = np.float32(1.0)
TWO = np.float32(2.0)
ZERO = np.float32(0.0)


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _rotation(quaternion):
    """Length of a quaternion wxyz, the unit quaternion and its matrix, row by row; identity for length 0."""
    w, x, y, z = quaternion
    # The optimizer moves quaternions freely; their length never matters but for 0.
    length = max(np.sqrt(w * w + x * x + y * y + z * z), np.float32(1e-12))
    w, x, y, z = w / length, x / length, y / length, z / length
    matrix = (
        (ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y)),
        (TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x)),
        (TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y)),
    )
    return length, (w, x, y, z), matrix


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _dot(first, second):
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _combine(factor, first, other_factor, second):
    return (
        factor * first[0] + other_factor * second[0],
        factor * first[1] + other_factor * second[1],
        factor * first[2] + other_factor * second[2],
    )


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _row(matrix, index):
    return (matrix[index, 0], matrix[index, 1], matrix[index, 2])


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _times_axes(rotation, row):
    """rotation^T row: a world vector in the splat's axes."""
    return (
        rotation[0][0] * row[0] + rotation[1][0] * row[1] + rotation[2][0] * row[2],
        rotation[0][1] * row[0] + rotation[1][1] * row[1] + rotation[2][1] * row[2],
        rotation[0][2] * row[0] + rotation[1][2] * row[1] + rotation[2][2] * row[2],
    )


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _image_rows(world_to_camera, lens, clamps, in_camera):
    """Clamped slopes, rows of J R before the focal lengths, and with them; J with the slopes of the clamped center."""
    focal_x, skew, focal_y = lens[0], lens[1], lens[3]
    inverse_z = ONE / in_camera[2]
    # The linear approximation breaks down beside the image, where splats would be smeared over all of it.
    slope_x = min(max(in_camera[0] * inverse_z, clamps[0]), clamps[1])
    slope_y = min(max(in_camera[1] * inverse_z, clamps[2]), clamps[3])
    forward = _row(world_to_camera, 2)
    plain_x = _combine(inverse_z, _row(world_to_camera, 0), -slope_x * inverse_z, forward)
    plain_y = _combine(inverse_z, _row(world_to_camera, 1), -slope_y * inverse_z, forward)
    # Focal lengths come last, since the gradient of the rows without them is what the camera's pose needs.
    row_x = _combine(focal_x, plain_x, skew, plain_y)
    row_y = _combine(focal_y, plain_y, ZERO, plain_x)
    return slope_x, slope_y, plain_x, plain_y, row_x, row_y


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _spread(log_scales, rotation, row_x, row_y):
    """Scales, and the two rows of J R S: their products are the covariance on the image."""
    scales = (np.exp(log_scales[0]), np.exp(log_scales[1]), np.exp(log_scales[2]))
    along_x, along_y = _times_axes(rotation, row_x), _times_axes(rotation, row_y)
    spread_x = (along_x[0] * scales[0], along_x[1] * scales[1], along_x[2] * scales[2])
    spread_y = (along_y[0] * scales[0], along_y[1] * scales[1], along_y[2] * scales[2])
    return scales, spread_x, spread_y


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _project_one(splat, in_camera, log_scales, rotations, opacities, world_to_camera, lens, clamps, geometry):
    center = _row(in_camera, splat)
    quaternion = rotations[splat, 0], rotations[splat, 1], rotations[splat, 2], rotations[splat, 3]
    _, _, rotation = _rotation(quaternion)
    _, _, _, _, row_x, row_y = _image_rows(world_to_camera, lens, clamps, center)
    _, spread_x, spread_y = _spread(_row(log_scales, splat), rotation, row_x, row_y)
    # J R S once, and its rows' products: symmetric and positive by construction, whatever the rounding.
    xx = _dot(spread_x, spread_x) + DILATION_32
    xy = _dot(spread_x, spread_y)
    yy = _dot(spread_y, spread_y) + DILATION_32
    inverse = ONE / (xx * yy - xy * xy)
    inverse_z = ONE / center[2]
    geometry[splat, 0] = (lens[0] * center[0] + lens[1] * center[1]) * inverse_z + lens[2]
    geometry[splat, 1] = lens[3] * center[1] * inverse_z + lens[4]
    geometry[splat, 2] = yy * inverse
    geometry[splat, 3] = -xy * inverse
    geometry[splat, 4] = xx * inverse
    geometry[splat, 5] = opacities[splat]


@numba.njit(cache=True, parallel=True, error_model="numpy")
@no_type_check
def project_forward(in_camera, log_scales, rotations, opacities, is_seen, world_to_camera, lens, clamps):
    """Project splats; arrays are float32 and contiguous.

    Centers are in camera axes, "n 3"; `lens` is focal length x, skew, center x, focal length y, center y in pixels;
    `clamps` are the least and greatest x/z and y/z in the Jacobian. Rows of splats that are not seen are 0.

    Returns:
        Geometry "n 6": x, y, conic xx, xy, yy, opacity.
    """
    count = len(in_camera)
    geometry = np.zeros((count, 6), np.float32)
    for splat in numba.prange(count):
        if is_seen[splat]:
            _project_one(splat, in_camera, log_scales, rotations, opacities, world_to_camera, lens, clamps, geometry)
    return geometry


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _by_covariance(conic, by_conic):
    """Gradient of the covariance's xx, xy, yy: -Q G Q for the conic Q and its gradient G, both symmetric."""
    xx, xy, yy = conic
    g_xx, g_xy, g_yy = by_conic[0], by_conic[1] / TWO, by_conic[2]
    # d(Q^-1) = -Q^-1 dQ Q^-1, written out for 2x2.
    left_xx, left_xy = xx * g_xx + xy * g_xy, xx * g_xy + xy * g_yy
    left_yx, left_yy = xy * g_xx + yy * g_xy, xy * g_xy + yy * g_yy
    return -(left_xx * xx + left_xy * xy), -TWO * (left_xx * xy + left_xy * yy), -(left_yx * xy + left_yy * yy)


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _by_quaternion(length, unit, row_x, row_y, by_x, by_y):
    """Gradient of the quaternion, when that of the rotation matrix is row_x by_x^T + row_y by_y^T."""
    w, x, y, z = unit
    g00 = row_x[0] * by_x[0] + row_y[0] * by_y[0]
    g01 = row_x[0] * by_x[1] + row_y[0] * by_y[1]
    g02 = row_x[0] * by_x[2] + row_y[0] * by_y[2]
    g10 = row_x[1] * by_x[0] + row_y[1] * by_y[0]
    g11 = row_x[1] * by_x[1] + row_y[1] * by_y[1]
    g12 = row_x[1] * by_x[2] + row_y[1] * by_y[2]
    g20 = row_x[2] * by_x[0] + row_y[2] * by_y[0]
    g21 = row_x[2] * by_x[1] + row_y[2] * by_y[1]
    g22 = row_x[2] * by_x[2] + row_y[2] * by_y[2]
    g_w = TWO * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
    g_x = TWO * (w * (g21 - g12) + y * (g01 + g10) + z * (g02 + g20) - TWO * x * (g11 + g22))
    g_y = TWO * (w * (g02 - g20) + x * (g01 + g10) + z * (g12 + g21) - TWO * y * (g00 + g22))
    g_z = TWO * (w * (g10 - g01) + x * (g02 + g20) + y * (g12 + g21) - TWO * z * (g00 + g11))
    # A change of the length does nothing, so that part of the gradient goes.
    along = w * g_w + x * g_x + y * g_y + z * g_z
    return (
        (g_w - w * along) / length,
        (g_x - x * along) / length,
        (g_y - y * along) / length,
        (g_z - z * along) / length,
    )


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _unproject_one(splat, in_camera, log_scales, rotations, geometry, world_to_camera, lens, clamps, by_geometry, outs):
    by_centers, by_log_scales, by_rotations, by_axes = outs
    center = _row(in_camera, splat)
    quaternion = rotations[splat, 0], rotations[splat, 1], rotations[splat, 2], rotations[splat, 3]
    length, unit, rotation = _rotation(quaternion)
    slope_x, slope_y, plain_x, plain_y, row_x, row_y = _image_rows(world_to_camera, lens, clamps, center)
    scales, spread_x, spread_y = _spread(_row(log_scales, splat), rotation, row_x, row_y)
    conic = geometry[splat, 2], geometry[splat, 3], geometry[splat, 4]
    by_conic = by_geometry[splat, 2], by_geometry[splat, 3], by_geometry[splat, 4]
    g_xx, g_xy, g_yy = _by_covariance(conic, by_conic)
    by_spread_x = _combine(TWO * g_xx, spread_x, g_xy, spread_y)
    by_spread_y = _combine(TWO * g_yy, spread_y, g_xy, spread_x)
    for axis in range(3):
        by_log_scales[splat, axis] = by_spread_x[axis] * spread_x[axis] + by_spread_y[axis] * spread_y[axis]
    by_x = by_spread_x[0] * scales[0], by_spread_x[1] * scales[1], by_spread_x[2] * scales[2]
    by_y = by_spread_y[0] * scales[0], by_spread_y[1] * scales[1], by_spread_y[2] * scales[2]
    g_w, g_i, g_j, g_k = _by_quaternion(length, unit, row_x, row_y, by_x, by_y)
    by_rotations[splat, 0], by_rotations[splat, 1] = g_w, g_i
    by_rotations[splat, 2], by_rotations[splat, 3] = g_j, g_k

    by_row_x = _dot(rotation[0], by_x), _dot(rotation[1], by_x), _dot(rotation[2], by_x)
    by_row_y = _dot(rotation[0], by_y), _dot(rotation[1], by_y), _dot(rotation[2], by_y)
    by_plain_x = _combine(lens[0], by_row_x, ZERO, by_row_y)
    by_plain_y = _combine(lens[1], by_row_x, lens[3], by_row_y)
    inverse_z = ONE / center[2]
    if len(by_axes):
        by_forward = _combine(-slope_x * inverse_z, by_plain_x, -slope_y * inverse_z, by_plain_y)
        for axis in range(3):
            by_axes[splat, 0, axis] = inverse_z * by_plain_x[axis]
            by_axes[splat, 1, axis] = inverse_z * by_plain_y[axis]
            by_axes[splat, 2, axis] = by_forward[axis]
    forward = _row(world_to_camera, 2)
    true_x, true_y = center[0] * inverse_z, center[1] * inverse_z
    by_slope_x = lens[0] * by_geometry[splat, 0]
    by_slope_y = lens[1] * by_geometry[splat, 0] + lens[3] * by_geometry[splat, 1]
    by_z = -(_dot(by_plain_x, plain_x) + _dot(by_plain_y, plain_y)) * inverse_z
    # A clamped slope is a constant: nothing of it goes back to the center.
    if slope_x == true_x:
        by_slope_x -= _dot(by_plain_x, forward) * inverse_z
    if slope_y == true_y:
        by_slope_y -= _dot(by_plain_y, forward) * inverse_z
    by_centers[splat, 0] = by_slope_x * inverse_z
    by_centers[splat, 1] = by_slope_y * inverse_z
    by_centers[splat, 2] = by_z - (by_slope_x * true_x + by_slope_y * true_y) * inverse_z


@numba.njit(cache=True, parallel=True, error_model="numpy")
@no_type_check
def project_backward(
    in_camera, log_scales, rotations, geometry, is_seen, world_to_camera, lens, clamps, by_geometry, has_axes
):
    """Gradients of `project_forward` in its first three arguments, for the gradient of its geometry.

    With `has_axes` also each splat's gradient in the rotation of `world_to_camera`, "n 3 3"; else "0 3 3".
    """
    count = len(in_camera)
    by_centers = np.zeros((count, 3), np.float32)
    by_log_scales = np.zeros((count, 3), np.float32)
    by_rotations = np.zeros((count, 4), np.float32)
    by_axes = np.zeros((count if has_axes else 0, 3, 3), np.float32)
    outs = (by_centers, by_log_scales, by_rotations, by_axes)
    for splat in numba.prange(count):
        if is_seen[splat]:
            _unproject_one(
                splat, in_camera, log_scales, rotations, geometry, world_to_camera, lens, clamps, by_geometry, outs
            )
    return outs

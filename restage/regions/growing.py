"""From a few splats to the whole thing: a random walk over neighboring splats that look alike.

A `SplatGraph` is prepared once for a scene, from colors, positions and features of models lifted to the splats; growing
from a click is then one sparse linear system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg
from scipy.spatial import KDTree
from torch import Tensor

from restage.records import InputError, write_atomically
from restage.regions.masks import MIN_TOTAL_WEIGHT, mean_shown
from restage.regions.region import splats_sha256
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.rasterize import splat_weights
from restage.scenes.splats import SH_C0, Splats

__all__ = ["SplatGraph", "grow_from", "load_graph", "prepare_graph", "save_graph", "seeds_at", "seeds_near"]
__all__ += ["spread_views"]

NUM_NEIGHBORS = 10
SIMILAR = 0.15
"""Distance of two neighbors' looks (RGB in [0, 1] and scaled features) at which their bond falls to 1/e."""
FEATURE_SCALE = 0.6
"""Size that lifted features get beside colors: root mean square of their length."""
LEAST_BOND = 1e-3
NEAR_BORDER = 0.06
"""Pixels within this share of a view's width from its border show what is around the thing that was captured."""
MOSTLY_BORDER = 0.3
"""A splat of which views show at least this share near their borders is background."""
FAR_OUT = 0.9
LIKE_BACKGROUND = 0.1
"""Distance to looks of the background at which a splat's own count for 1/e of them."""
PULL = 0.01
"""Strength, beside bonds of up to 1, with which what looks like background is held outside."""
SEED_SHARE = 0.2
"""A click means the splats that show there with at least this share of the strongest one's weight."""
NUM_VIEWS = 16


@dataclass(frozen=True)
class SplatGraph:
    """How alike neighboring splats of one scene are, and how much each looks like background."""

    looks: Float[Array, "n d"]  # colors, then scaled features
    background: Float[Array, " n"]  # in [0, 1]; 1 where views show a splat near their borders, or nothing like it else
    bonds: csr_matrix  # n x n, symmetric, of neighbors in space
    splats_sha256: str


def prepare_graph(splats: Splats, capture: Capture, features: Float[Tensor, "n c"] | None = None) -> SplatGraph:
    """Prepare growing in a scene; takes seconds. `features` are what a model says of each splat, in any units."""
    colors = (0.5 + SH_C0 * splats.sh[:, 0].detach()).clamp(0, 1).cpu().numpy()
    looks = [colors.astype(np.float64)]
    if features is not None:
        plain = features.detach().double().cpu().numpy()
        looks.append(plain * (FEATURE_SCALE / max(1e-12, float(np.sqrt((plain**2).sum(axis=1).mean())))))
    # On the levels of a file, so that a graph that was read grows as the one that was written.
    found = np.concatenate(looks, axis=1).astype(np.float32).astype(np.float64)
    return SplatGraph(found, _background(splats, capture, found), _bonds(splats, found), splats_sha256(splats))


def _bonds(splats: Splats, looks: Float[Array, "n d"]) -> csr_matrix:
    points = splats.means.detach().double().cpu().numpy()
    count = min(NUM_NEIGHBORS, len(points) - 1)
    if not count:
        return csr_matrix((len(points),) * 2)
    distances, neighbors = map(np.asarray, KDTree(points).query(points, k=count + 1))
    first, second = np.repeat(np.arange(len(points)), count), neighbors[:, 1:].ravel()
    differences = np.square(looks[first] - looks[second]).sum(axis=1)
    # Splats are dense where there is detail: near is what is near among the neighbors.
    spacing = np.repeat(distances[:, 1:].mean(axis=1), count).clip(1e-12)
    nearness = np.exp(-np.square(distances[:, 1:].ravel() / (2 * spacing)))
    weights = (np.exp(-differences / SIMILAR**2) + LEAST_BOND) * nearness
    bonds = coo_matrix((weights, (first, second)), shape=(len(points),) * 2).tocsr()
    return ((bonds + bonds.T) * 0.5).tocsr()


def _background(splats: Splats, capture: Capture, looks: Float[Array, "n d"]) -> Float[Array, " n"]:
    views, points = spread_views(capture), splats.means.detach().double().cpu().numpy()
    width, height = capture.cameras.width, capture.cameras.height
    margin = max(1, round(NEAR_BORDER * width))
    border = torch.ones(height, width, device=splats.means.device)
    border[margin : height - margin, margin : width - margin] = 0
    shown = mean_shown(splats, capture.cameras[views], border.expand(len(views), -1, -1)).cpu().numpy()
    is_around = shown >= MOSTLY_BORDER
    if not is_around.any():  # nothing reaches the borders: around is what lies farthest out
        away = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        is_around = away >= np.quantile(away, FAR_OUT)
    distances, _ = KDTree(looks[is_around]).query(looks, k=min(5, int(is_around.sum())))
    likeness = np.exp(-np.square(distances.reshape(len(looks), -1)[:, -1] / LIKE_BACKGROUND))
    return np.where(is_around, 1.0, likeness).astype(np.float32).astype(np.float64)


def spread_views(capture: Capture, count: int = NUM_VIEWS) -> list[int]:
    """Training views, at most so many, spread over all of them."""
    views = list(capture.train_indices)
    return views[:: max(1, -(-len(views) // count))]


def seeds_at(splats: Splats, camera: Cameras, x: float, y: float) -> Int[Tensor, " seeds"]:
    """Splats that a pixel of a view (n = 1) shows; x and y are shares of its width and height, from the top left."""
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise InputError(f"expected a place in the view as shares in [0, 1], got {x} and {y}")
    column, row = min(int(x * camera.width), camera.width - 1), min(int(y * camera.height), camera.height - 1)
    touched = torch.zeros(1, camera.height, camera.width, device=splats.means.device)
    touched[0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
    weights = splat_weights(splats, camera, touched)[0][:, 0]
    if not float(weights.max()) > MIN_TOTAL_WEIGHT:
        raise InputError(f"the view shows no splat at {x}, {y}")
    return (weights > SEED_SHARE * weights.max()).nonzero()[:, 0].cpu()


def seeds_near(splats: Splats, point: Sequence[float], count: int = 8) -> Int[Tensor, " seeds"]:
    """The splats whose centers are nearest to a point of the world."""
    place = torch.tensor(list(point)).to(splats.means)
    if not bool(place.isfinite().all()):
        raise InputError(f"expected a point as three finite numbers, got {list(point)}")
    distances = (splats.means.detach() - place).norm(dim=1)
    return distances.topk(min(count, len(splats)), largest=False).indices.cpu()


def grow_from(
    graph: SplatGraph, positive: Int[Tensor, " seeds"], negative: Int[Tensor, " others"] | None = None
) -> Float[Tensor, " n"]:
    """Grow seeds to the thing that they lie on: 1 for its splats, 0 for others; never takes in negative ones.

    Random walker (Grady 2006, https://doi.org/10.1109/TPAMI.2006.233) with a prior: a walk from each splat along the
    bonds ends at a seed, or outside, where it also ends with some chance on what looks like background. The thing is
    what more likely ends at a positive seed and hangs together with one.
    """
    size = len(graph.background)
    is_inside, is_fixed = np.zeros(size), np.zeros(size, dtype=bool)
    if negative is not None:
        is_fixed[negative.numpy()] = True
    positive = positive[~torch.from_numpy(is_fixed)[positive]]
    if not len(positive):
        raise InputError("expected at least one splat to grow from that is not to be left out")
    is_inside[positive.numpy()] = 1
    is_fixed |= is_inside > 0
    degrees = np.asarray(graph.bonds.sum(axis=1)).ravel()
    system = (diags(degrees + PULL * graph.background + 1e-6) - graph.bonds).tocsr()[~is_fixed]
    free = system[:, ~is_fixed]
    pushed = -np.asarray(system[:, is_fixed] @ is_inside[is_fixed]).ravel()
    is_inside[~is_fixed], _ = cg(free, pushed, rtol=1e-3, maxiter=300, M=diags(1 / free.diagonal()))
    chosen = is_inside >= 0.5
    _, pieces = connected_components(graph.bonds[chosen][:, chosen], directed=False)
    labels = np.full(size, -1)
    labels[chosen] = pieces
    return torch.from_numpy(chosen & np.isin(labels, labels[positive.numpy()])).float()


def save_graph(path: Path, graph: SplatGraph) -> None:
    """Keep what takes long to prepare, atomically."""
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            looks=graph.looks.astype(np.float32),
            background=graph.background.astype(np.float32),
            splats_sha256=np.array(graph.splats_sha256),
        )


def load_graph(path: Path, splats: Splats) -> SplatGraph | None:
    """Read what `save_graph` wrote; None if it is not there, or belongs to other splats."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            looks, background = (arrays[name].astype(np.float64) for name in ("looks", "background"))
            made_for = str(arrays["splats_sha256"])
    except (OSError, ValueError, KeyError, EOFError):
        return None  # prepared anew, as if it was not there
    if made_for != splats_sha256(splats):
        return None
    return SplatGraph(looks, background, _bonds(splats, looks), made_for)

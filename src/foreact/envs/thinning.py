"""Fewer triangles to draw, since software rendering is bound by them and robots' meshes are fine.

What is drawn changes a little, the physics not at all: contacts use vertices and convex hulls,
which stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FEW = 800
"""Meshes of fewer triangles stay as they are."""


def thin_meshes(model: Any, cell: float) -> tuple[int, int]:
    """Rewrite the triangles of every fine mesh of a compiled model over fewer of its vertices.

    Vertices that share a cell of a grid become the one nearest to their mean. Call it before the
    first renderer of the model is made, since that copies the meshes.

    Args:
        model: a `mujoco.MjModel`; its `mesh_face...` arrays change.
        cell: side of the grid's cells, in metres.

    Returns:
        Number of triangles before and after.
    """
    before = int(model.mesh_facenum.sum())
    for mesh in range(model.nmesh):
        first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        if count < FEW:
            continue
        start = int(model.mesh_vertadr[mesh])
        vertices = model.mesh_vert[start : start + int(model.mesh_vertnum[mesh])]
        faces = _representatives(vertices.astype(np.float64), cell)[
            model.mesh_face[first : first + count]
        ]
        kept = _distinct(faces)
        thinned = slice(first, first + len(kept))
        model.mesh_face[thinned] = faces[kept]
        for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
            corners[thinned] = corners[first : first + count][kept]
        model.mesh_facenum[mesh] = len(kept)
    return before, int(model.mesh_facenum.sum())


def _representatives(vertices: np.ndarray, cell: float) -> np.ndarray:
    """For each of the vertices (V, 3) the number of the one that stands for its cell: int (V,)."""
    cells = np.floor(vertices / cell).astype(np.int64)
    cluster = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    size = np.bincount(cluster)
    mean = np.stack([np.bincount(cluster, weights=axis) for axis in vertices.T], axis=1)
    distance = np.linalg.norm(vertices - (mean / size[:, None])[cluster], axis=1)
    far_to_near = np.argsort(-distance, kind="stable")
    nearest = np.empty(len(size), np.int64)
    nearest[cluster[far_to_near]] = far_to_near  # of each cell's vertices the last one stays
    return nearest[cluster]


def _distinct(faces: np.ndarray) -> np.ndarray:
    """Numbers of the triangles (F, 3) that have three corners, each set of corners once."""
    corners = np.sort(faces, axis=1)
    flat = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2])
    first = np.unique(corners, axis=0, return_index=True)[1]
    return np.sort(first[~flat[first]])

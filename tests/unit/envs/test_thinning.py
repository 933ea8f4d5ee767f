"""Fast pictures: fewer triangles, the same shape, the same physics."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from foreact.envs.mujoco_pictures import Pictures, draw_fast
from foreact.envs.rendering import choose_library
from foreact.envs.thinning import thin_meshes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed"
)

BALL = """
<mujoco>
  <asset>
    <mesh name="ball" builtin="sphere" params="4"/>
    <mesh name="coarse" builtin="sphere" params="2"/>
  </asset>
  <worldbody>
    <light pos="0 0 6"/>
    <camera name="front" pos="0 -6 1" xyaxes="1 0 0 0 0 1"/>
    <geom group="1" type="plane" size="3 3 1" rgba="0.2 0.3 0.8 1"/>
    <body pos="0.5 0 2"><freejoint/>
      <geom group="1" type="mesh" mesh="ball" rgba="0.9 0.1 0.1 1"/>
    </body>
    <body pos="-2 0 2"><freejoint/>
      <geom group="1" type="mesh" mesh="coarse" rgba="0.1 0.9 0.1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def load() -> tuple[Any, Any]:
    choose_library("mujoco")  # before it is imported
    mujoco: Any = importlib.import_module("mujoco")
    model = mujoco.MjModel.from_xml_string(BALL)
    return mujoco, model


def test_fine_meshes_lose_triangles_and_keep_their_shape() -> None:
    _, model = load()
    fine, coarse = (int(n) for n in model.mesh_facenum)
    vertices = model.mesh_vert.copy()
    before, after = thin_meshes(model, 0.2)
    assert before == fine + coarse
    assert after == int(model.mesh_facenum.sum()) < before / 4
    assert model.mesh_facenum[1] == coarse  # it was coarse already
    np.testing.assert_array_equal(model.mesh_vert, vertices)

    faces = model.mesh_face[: model.mesh_facenum[0]]
    assert faces.max() < model.mesh_vertnum[0]
    corners = np.sort(faces, axis=1)
    assert (np.diff(corners, axis=1) > 0).all()
    assert len(np.unique(corners, axis=0)) == len(corners)
    a, b, c = np.moveaxis(vertices[faces].astype(float), 1, 0)
    outward = np.einsum("ij,ij->i", np.cross(b - a, c - a), (a + b + c) / 3)
    assert (outward > 0).mean() > 0.98
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    radius = np.linalg.norm(vertices[: model.mesh_vertnum[0]], axis=1).max()
    assert area == pytest.approx(4 * np.pi * radius**2, rel=0.1)


def test_physics_is_the_same_bit_for_bit() -> None:
    ends = []
    for fast in (False, True):
        mujoco, model = load()
        if fast:
            draw_fast(model)
            thin_meshes(model, 0.3)
        data = mujoco.MjData(model)
        for _ in range(600):
            mujoco.mj_step(model, data)
        ends.append(np.concatenate([data.qpos, data.qvel]))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert ends[0][2] < 1.2  # the ball has landed


def test_fast_pictures_are_upright_and_nearly_the_same() -> None:
    seen = []
    for fast in (False, True):
        mujoco, model = load()
        if fast:
            draw_fast(model)
            thin_meshes(model, 0.2)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        pictures = Pictures(model, 48, shadows=not fast)
        seen.append(pictures.draw(data, "front").astype(int))
        pictures.close()
    for picture in seen:
        red = picture[..., 0] - picture[..., 2] > 60
        green = picture[..., 1] - picture[..., 0] > 60
        blue = picture[..., 2] - picture[..., 0] > 40
        assert np.nonzero(red)[1].mean() > 24 > np.nonzero(green)[1].mean()
        assert np.nonzero(blue)[0].mean() > np.nonzero(red)[0].mean() + 5
    assert np.abs(seen[0] - seen[1]).mean() < 20

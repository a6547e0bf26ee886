"""The Triton z-buffer against the torch reference: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from renderers.raster import rasterize, to_clip
from tests.renderers.shapes import blob, views

ROOT = Path(__file__).parents[2]

# Triton decides at import whether to interpret, so the kernel is proved in a process of its own.
INTERPRETED = """
import torch
from renderers.backends import torch_raster, triton_raster
from renderers.raster import rasterize, to_clip
from tests.renderers.shapes import blob, screen_triangle, views

def check(pos, tri, size):
    tri_id, zw = triton_raster.visibility(pos, tri, *size)
    reference_id, reference_zw = torch_raster.visibility(pos, tri, *size)
    assert torch.equal(tri_id, reference_id), int((tri_id != reference_id).sum())
    assert torch.equal(zw, reference_zw), (zw - reference_zw).abs().max()
    return float((tri_id > 0).float().mean())

mesh = blob(2)
for size in ((32, 32), (19, 27)):
    covered = check(to_clip(mesh.v_pos, views(2, *size).mvp()), mesh.t_pos_idx, size)
    assert 0.1 < covered < 0.9, covered
size = (24, 24)
depths = (0.3, -0.2, -0.2, 0.7)
large = torch.cat([screen_triangle([[-20, -20], [80, -20], [-20, 80]], size, z) for z in depths])
assert check(large[None], torch.arange(12).view(4, 3), size) == 1.0
assert check(large[None], torch.zeros(0, 3, dtype=torch.int64), size) == 0.0
raster = rasterize(large[None], torch.arange(12).view(4, 3), size, backend="triton")
assert (raster.tri_id == 2).all()
print("proved")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install 'text-to-3d-studio[triton]'",
)
def test_the_interpreted_kernel_equals_the_reference_bit_for_bit():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("proved")


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (131, 77)])
def test_the_compiled_kernel_equals_the_reference_bit_for_bit(size):
    mesh = blob(5).to("cuda")
    pos = to_clip(mesh.v_pos, views(2, *size).to("cuda").mvp())
    ours = rasterize(pos, mesh.t_pos_idx, size, backend="triton")
    reference = rasterize(pos, mesh.t_pos_idx, size, backend="torch")
    assert torch.equal(ours.tri_id, reference.tri_id)
    assert torch.equal(ours.zw, reference.zw)
    assert (ours.tri_id > 0).float().mean() > 0.1

"""Read an exported GLB back into the scene it came from, to render or to look at.

Only files of our own writer are meant: one mesh, one primitive, texture or vertex colours.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch

from renderers.mesh import Mesh
from studio.errors import ConfigError
from studio.export.glb_check import read_accessor, read_glb
from studio.export.gltf import linear_to_srgb
from studio.export.placement import WORLD_TO_GLTF

__all__ = ["load_asset"]


def load_asset(path: Path) -> Mesh:
    """The mesh of a GLB, in the world coordinates of its scene.

    Vertices that the file splits at seams and creases are one again, so that silhouettes are
    those of the closed surface.

    Raises:
        ConfigError: there is no such file, or it is no GLB of this program.
    """
    try:
        return _mesh(*read_glb(path.read_bytes()))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file - expected an exported GLB. Make it with: studio export RUN"
        ) from error
    # An image that does not decode is an OSError, as is a file that cannot be read.
    except (ValueError, LookupError, TypeError, struct.error, OSError) as error:
        raise ConfigError(
            f"{path} is no whole GLB that this program wrote ({error}). Make it again with: "
            "studio export RUN"
        ) from error


def _mesh(document: dict, binary: bytes) -> Mesh:
    """The mesh of a parsed file; whatever is missing in it raises."""
    primitive = document["meshes"][0]["primitives"][0]
    frame = document["asset"]["extras"]["scene_frame"]
    arrays = {
        name: read_accessor(document, binary, index)
        for name, index in primitive["attributes"].items()
    }
    faces = read_accessor(document, binary, primitive["indices"]).reshape(-1, 3).astype(np.int64)
    v_pos, first, inverse = np.unique(
        arrays["POSITION"], axis=0, return_index=True, return_inverse=True
    )
    world = (v_pos / frame["scale"] + np.array(frame["base"])) @ WORLD_TO_GLTF
    mesh = {"v_pos": torch.from_numpy(world).float(), "t_pos_idx": _tensor(inverse[faces])}
    if "COLOR_0" in arrays:
        rgb = linear_to_srgb(arrays["COLOR_0"][first, :3] / 65535.0)
        return Mesh(**mesh, v_rgb=torch.from_numpy(rgb).float())
    return Mesh(
        **mesh,
        v_tex=_tensor(arrays["TEXCOORD_0"]),
        t_tex_idx=_tensor(faces),
        texture=_image(document, binary),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor with memory of its own; the file's bytes are read-only."""
    return torch.from_numpy(np.array(array))


def _image(document: dict, binary: bytes) -> torch.Tensor:
    """The base colour texture, [h, w, 3] in 0..1."""
    from PIL import Image

    view = document["bufferViews"][document["images"][0]["bufferView"]]
    start = view.get("byteOffset", 0)
    with Image.open(io.BytesIO(binary[start : start + view["byteLength"]])) as image:
        return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255.0)

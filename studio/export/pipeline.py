"""From a trained field to asset files, in the order that keeps every step affordable.

Surface -> clean-up -> decimation -> texture coordinates -> colours -> axes and height -> files ->
check. Colours are read at the decimated surface, in world coordinates; the asset's frame comes
last.

    result = export_field(field, ExportConfig(), Path("asset"), name="teapot")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from renderers.fields.painted_mesh import PaintedMeshField
from renderers.fields.tet_mesh import TetMeshField
from studio.errors import Diverged, EmptyGeometry
from studio.export.bake import (
    Colours,
    Texture,
    bake_texture,
    shell_colours,
    surface_colours,
    vertex_colours,
)
from studio.export.cleanup import repair, weld
from studio.export.configs import ExportConfig
from studio.export.files import Asset, prepare_folder, write_asset
from studio.export.gltf import png_bytes
from studio.export.parts import drop_parts
from studio.export.placement import place
from studio.export.remesh import check_remesh, remesh
from studio.export.shading import flatten
from studio.export.simplify import decimate
from studio.export.surface import DensityField, DistanceField, Surface, extract_surface
from studio.export.triangles import Triangles
from studio.export.unwrap import Atlas, unwrap
from studio.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

__all__ = ["ExportResult", "export_field", "export_mesh", "export_painted", "export_run"]

Progress = Callable[[str], None]
MEASURED = ("evaluation", "subject_evaluation")
"""Keys of ``run.json`` with figures of the asset, which another asset makes untrue."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and the figures that tell whether it is any good."""

    files: dict[str, str]
    """File name by format (glb, obj, ply, texture, ...), relative to the asset folder."""
    n_vertices: int
    """Vertices in the files, after splitting at seams and creases."""
    n_faces: int
    """Triangles in the files."""
    n_faces_extracted: int
    """Triangles before decimation."""
    threshold: float
    """Density of the surface; 0 for distance fields."""
    silhouette_iou: float | None
    """Agreement of the surface with the rendered opacity; None when the threshold was given."""
    appearance: str
    """``charts`` or ``patches`` (kinds of texture), or ``vertex``."""
    texture_coverage: float | None
    """Fraction of the texture that the surface uses."""
    floaters_dropped: int
    """Small parts removed."""
    hidden_dropped: int
    """Parts removed because they lie wholly inside others, and walls of cavities."""
    holes_filled: int
    """Boundary loops closed."""
    problems: tuple[str, ...]
    """What the structural check of the GLB found; empty for a sound file."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for ``run.json``."""
        return asdict(self)


@dataclass
class _Clock:
    """Times the steps and announces them."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def export_run(
    run: RunFolder,
    config: ExportConfig | None = None,
    *,
    device: str = "cpu",
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Export the last stage of a run into its asset folder, and note it in ``run.json``.

    A mesh stage gives its own surface, and one that painted a file that file's, as it is; a field
    is marched.

    Args:
        run: the run folder.
        config: export settings; those of the run's scene when None.
        device: where the field is evaluated.
        progress: told the name of each step as it starts.

    Raises:
        EmptyGeometry: the field has no surface.
        StorageError: the asset folder cannot be written.
    """
    from studio.stages import load_stage

    stage = load_stage(run, device, particle=None if config is None else config.particle)
    config = config or stage.config.export
    info = run.read_info()
    options = {
        "name": run.path.parent.name,
        "extras": {key: info[key] for key in ("prompt", "seed", "version") if key in info},
        "device": device,
        "progress": progress,
    }
    if isinstance(stage.field, TetMeshField | PaintedMeshField):
        mesh = stage.field.mesh().detach().to("cpu")
        triangles = Triangles.of(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy())
        colours = surface_colours(stage.field)
        export = export_painted if isinstance(stage.field, PaintedMeshField) else export_mesh
        result = export(triangles, colours, config, run.asset_dir, **options)
    else:
        result = export_field(stage.field, config, run.asset_dir, **options)
    run.update_info({"export": result.as_dict()}, drop=MEASURED)
    return result


def export_field(
    scene_field: DensityField | DistanceField,
    config: ExportConfig,
    out_dir: Path,
    *,
    name: str = "asset",
    extras: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Extract, clean, colour and write a field.

    Args:
        scene_field: a radiance field or a signed distance field with albedo.
        config: export settings.
        out_dir: folder for the files, made when missing.
        name: object name inside the files.
        extras: JSON values for ``asset.extras`` of the GLB (prompt, seed, version).
        device: where the field is evaluated.
        progress: told the name of each step as it starts.

    Raises:
        EmptyGeometry: the field has no surface; the message names its range and what to try.
        BackendMissing: ``config.remesh`` needs a package that is not installed.
        StorageError: ``out_dir`` cannot be written.
    """
    check_remesh(config.remesh)
    prepare_folder(out_dir)
    clock = _Clock(progress)
    with clock.step("surface"):
        surface = extract_surface(scene_field, config, device=device)
    colours = _colours(scene_field, surface, config)
    result = _finish(
        surface.mesh, colours, config, out_dir, name=name, extras=extras, device=device, clock=clock
    )
    iou = surface.level.silhouette_iou if surface.level else None
    return replace(result, threshold=surface.threshold, silhouette_iou=iou)


def export_mesh(
    mesh: Triangles,
    colours: Colours,
    config: ExportConfig,
    out_dir: Path,
    *,
    name: str = "asset",
    extras: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Clean, colour and write a surface that exists already; arguments as in ``export_field``."""
    check_remesh(config.remesh)
    prepare_folder(out_dir)
    _require_sound(mesh)
    return _finish(
        weld(mesh),
        colours,
        config,
        out_dir,
        name=name,
        extras=extras,
        device=device,
        clock=_Clock(progress),
    )


def export_painted(
    mesh: Triangles,
    colours: Colours,
    config: ExportConfig,
    out_dir: Path,
    *,
    name: str = "asset",
    extras: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _: None,
) -> ExportResult:
    """Colour and write a surface of the user's, every triangle of it; arguments as above.

    ``max_faces``, ``min_component`` and ``remesh`` do not apply.
    """
    prepare_folder(out_dir)
    _require_sound(mesh)
    clock = _Clock(progress)
    return _write(
        mesh, colours, config, out_dir, name=name, extras=extras, device=device, clock=clock
    )


def _require_sound(mesh: Triangles) -> None:
    """Refuse a given surface that no file can hold.

    Raises:
        EmptyGeometry: it has no faces, or no face has an area.
        Diverged: a vertex is NaN or infinite.
    """
    wrong = int((~np.isfinite(mesh.v_pos)).any(axis=1).sum())
    if wrong:
        raise Diverged(
            f"{wrong} of {len(mesh.v_pos)} vertices of the mesh are NaN or infinite - expected "
            "numbers. Train again with a lower learning rate of the geometry."
        )
    if not (mesh.areas() > 0.0).any():
        raise EmptyGeometry(
            f"The mesh has no surface ({len(mesh.t_pos_idx)} faces, none with an area) - expected "
            "at least one triangle. Give a mesh with faces."
        )


def _colours(
    scene_field: DensityField | DistanceField, surface: Surface, config: ExportConfig
) -> Colours:
    """Shell colours for volumes; a distance field's colour lives on its surface."""
    if isinstance(scene_field, DistanceField) or config.shell_cells == 0.0:
        return surface_colours(scene_field)
    return shell_colours(
        scene_field,
        outside=config.shell_cells * surface.cell,
        inside=config.shell_depth_cells * surface.cell,
    )


def _finish(
    mesh: Triangles,
    colours: Colours,
    config: ExportConfig,
    out_dir: Path,
    *,
    name: str,
    extras: dict[str, Any] | None,
    device: torch.device | str,
    clock: _Clock,
) -> ExportResult:
    """Everything after the raw surface: clean-up, decimation, and what ``_write`` does."""
    n_extracted = len(mesh.t_pos_idx)
    with clock.step("clean-up"):
        mesh, floaters, hidden = drop_parts(mesh, min_component=config.min_component)
    with clock.step("decimation"):
        mesh = remesh(mesh, config.remesh, max_faces=config.max_faces)
        mesh, holes = repair(decimate(mesh, config.max_faces))
    if not len(mesh.t_pos_idx):
        raise EmptyGeometry(
            f"Nothing is left of {n_extracted} triangles after clean-up ({floaters} floaters and "
            f"{hidden} hidden parts dropped). Expected at least one solid part. Try a lower "
            "--threshold, or export.min_component=0."
        )
    result = _write(
        mesh, colours, config, out_dir, name=name, extras=extras, device=device, clock=clock
    )
    return replace(
        result,
        n_faces_extracted=n_extracted,
        floaters_dropped=floaters,
        hidden_dropped=hidden,
        holes_filled=holes,
    )


def _write(
    mesh: Triangles,
    colours: Colours,
    config: ExportConfig,
    out_dir: Path,
    *,
    name: str,
    extras: dict[str, Any] | None,
    device: torch.device | str,
    clock: _Clock,
) -> ExportResult:
    """Colours and files of a surface that stays as it is."""
    atlas, texture = _textured(mesh, colours, config, device=device, clock=clock)
    with clock.step("vertex colours"):
        v_rgb = vertex_colours(mesh, colours, device=device)
    with clock.step("files"):
        placed, frame = place(mesh, height_m=config.height_m)
        crease_deg = config.crease_deg
        painted = flatten(placed, crease_deg=crease_deg, v_rgb=v_rgb)
        flat = painted if atlas is None else flatten(placed, crease_deg=crease_deg, atlas=atlas)
        png = None if texture is None else png_bytes(texture.image)
        asset = Asset(name, flat, painted, png, {**(extras or {}), "scene_frame": asdict(frame)})
        files, problems = write_asset(asset, out_dir, formats=config.formats, up=config.up)
    return ExportResult(
        files=files,
        n_vertices=len(flat.position),
        n_faces=len(flat.faces),
        n_faces_extracted=len(mesh.t_pos_idx),
        threshold=0.0,
        silhouette_iou=None,
        appearance="vertex" if atlas is None else atlas.kind,
        texture_coverage=None if texture is None else round(texture.coverage, 4),
        floaters_dropped=0,
        hidden_dropped=0,
        holes_filled=0,
        problems=problems,
        seconds=clock.seconds,
    )


def _textured(
    mesh: Triangles,
    colours: Colours,
    config: ExportConfig,
    *,
    device: torch.device | str,
    clock: _Clock,
) -> tuple[Atlas | None, Texture | None]:
    """Unwrap and bake; nothing for vertex colours, or when the triangles do not fit the texture."""
    if config.appearance == "vertex":
        return None, None
    with clock.step("unwrapping"):
        atlas = unwrap(mesh, texture_size=config.texture_size, budget_s=config.unwrap_budget_s)
    if atlas is None:
        clock.progress(
            f"warning: {len(mesh.t_pos_idx)} triangles do not fit a texture of "
            f"{config.texture_size} pixels, so the colours lie in the vertices. A larger "
            "texture_size helps, or a smaller max_faces."
        )
        return None, None
    with clock.step("texture"):
        texture = bake_texture(
            mesh,
            atlas,
            colours,
            size=config.texture_size,
            crease_deg=config.crease_deg,
            device=device,
        )
    return atlas, texture

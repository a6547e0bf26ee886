"""Which stages may follow each other, and which settings fit what a stage optimises. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from guidance.control_sds_configs import ControlSDSConfig
from guidance.critic_configs import VSDConfig
from guidance.delta_edit_configs import DeltaEditConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.layout_multiview_configs import OF_SETS, LayoutMultiViewConfig
from image_tools.configs import (
    MVDreamPriorConfig,
    PersonalizedPriorConfig,
    PocketMultiViewPriorConfig,
    PriorConfig,
    ReferencedPriorConfig,
)
from renderers.configs import (
    DiffuseMaterialConfig,
    HashSDFConfig,
    MultiViewCamerasConfig,
    RandomBackgroundConfig,
    SolidBackgroundConfig,
)
from renderers.mesh_configs import GridTetsConfig, MeshFileConfig, MeshRendererConfig
from studio.edit_configs import EditConfig
from studio.stage_configs import PreviousFieldConfig, StageConfig

__all__ = ["stage_problems"]

SEVERAL_VIEWS = PocketMultiViewPriorConfig | MVDreamPriorConfig
"""Priors of sets of views."""
OF_SAMPLES = ("orient", "z_variance", "eikonal")
"""Losses that read samples along rays, which only a volume has."""
OF_MESHES = ("normal_consistency", "laplacian")
"""Losses that read vertices and edges."""
OF_SHAPES = (*OF_MESHES, "sparsity", "border", "opaque", "opacity_smoothness")
"""Losses that reach nothing but the shape."""
VIEWS_OF_A_SET = 4
"""What the priors of several views were trained on."""


def stage_problems(
    stages: Sequence[StageConfig], prior: PriorConfig, edit: EditConfig | None = None
) -> list[str]:
    """What is wrong with the stages of a scene, each with the key at fault; empty when sound.

    Args:
        stages: the stages in order.
        prior: guides the stages that have no prior of their own.
        edit: the finished run that the first stage starts from, if it does.
    """
    if not stages:
        return ["stages: is empty - expected at least one stage."]
    names = [stage.name for stage in stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"stages: the name {name!r} stands twice - name each once." for name in twice]
    color_field = stages[0].field if edit is None else edit.field
    is_file = isinstance(color_field, MeshFileConfig)
    is_mesh = is_file or (edit is not None and edit.mesh is not None)
    for index, stage in enumerate(stages):
        where = f"stages.{index}"
        before = stages[index - 1] if index else None
        problems += [f"{where}.{text}" for text in _field_problems(stage, before, is_mesh, edit)]
        starts = before is None and edit is None
        is_mesh = is_mesh or (not starts and isinstance(stage.field, GridTetsConfig))
        is_distance = isinstance(color_field, HashSDFConfig)
        is_known = is_mesh or edit is None or edit.field is not None
        fits = []  # what a run that was not opened yet ended with may be either
        if is_known:
            fits = _mesh_problems(stage) if is_mesh else _volume_problems(stage, is_distance)
        if is_file and stage.geometry != "fixed":
            fits.append("geometry: a mesh from a file keeps its shape - expected fixed, got free.")
        fits += _instruction_problems(stage, edit)
        if isinstance(stage.guidance, DeltaEditConfig) and edit is None:
            fits.append("guidance: delta_edit edits a finished run - expected edit.run.")
        fits += _view_problems(stage, stage.prior or prior) + _part_problems(stage, edit)
        fits += _critic_problems(stage, stage.prior or prior)
        if stage.opacity_by == "background" and stage.background.kind != "random":
            fits.append(
                "opacity_by: background needs a random one - expected background.kind=random, got "
                f"{stage.background.kind}."
            )
        problems += [f"{where}.{text}" for text in fits]
    return problems


def _field_problems(
    stage: StageConfig, before: StageConfig | None, was_mesh: bool, edit: EditConfig | None
) -> list[str]:
    """Whether the stage's field can come from the stage before it, or from a finished run."""
    makes_mesh = isinstance(stage.field, GridTetsConfig)
    goes_on = isinstance(stage.field, PreviousFieldConfig)
    if before is None and edit is None:
        if makes_mesh:
            return [
                "field: a mesh starts from the field of a stage before it - expected hash_volume "
                "or hash_sdf in the first stage, and grid_tets in a later one."
            ]
        return ["field: expected a field of its own, got previous."] if goes_on else []
    problems = []
    if makes_mesh and was_mesh:
        problems.append("field: the stage before has a mesh already - expected {kind: previous}.")
    elif not makes_mesh and not goes_on:
        problems.append(
            "field: expected {kind: previous}, or {kind: grid_tets} for a mesh, got "
            f"{stage.field.kind}."
        )
    if before is not None and stage.particles > before.particles:
        problems.append(
            f"particles: is {stage.particles}, and the stage before has {before.particles} - "
            "expected no more than there."
        )
    return problems


def _mesh_problems(stage: StageConfig) -> list[str]:
    """Settings that do not fit a mesh."""
    problems = []
    if not isinstance(stage.renderer, MeshRendererConfig):
        problems.append(f"renderer: expected {{kind: mesh}} for a mesh, got {stage.renderer.kind}.")
    problems += [
        f"losses.{name}: reads samples along rays, and a mesh has none - expected 0."
        for name in OF_SAMPLES
        if getattr(stage.losses, name) != 0.0
    ]
    if stage.geometry == "fixed":
        problems += [
            f"losses.{name}: acts on the shape, which geometry: fixed keeps - expected 0."
            for name in OF_SHAPES
            if getattr(stage.losses, name) != 0.0
        ]
        if stage.guide_on == "normals":
            problems.append(
                "guide_on: normals act on the shape, which geometry: fixed keeps - expected color."
            )
    return problems


def _volume_problems(stage: StageConfig, is_distance: bool) -> list[str]:
    """Settings that do not fit a density or distance field."""
    problems = []
    if isinstance(stage.renderer, MeshRendererConfig):
        problems.append(
            "renderer: expected {kind: volume}, got mesh; a stage with "
            "field: {kind: grid_tets} makes a mesh."
        )
    if stage.losses.eikonal != 0.0 and not is_distance:
        problems.append(
            "losses.eikonal: needs a signed distance - expected 0, or stages.0.field.kind=hash_sdf."
        )
    problems += [
        f"losses.{name}: needs a mesh - expected 0, or a stage with field: {{kind: grid_tets}}."
        for name in OF_MESHES
        if getattr(stage.losses, name) != 0.0
    ]
    if stage.geometry == "fixed":
        problems.append(
            "geometry: fixed needs a mesh - expected free: in a volume, shape and colour share "
            "their parameters."
        )
    return problems


def _instruction_problems(stage: StageConfig, edit: EditConfig | None) -> list[str]:
    """Whether a rule that follows an instruction has something to edit, in front of one colour."""
    if not isinstance(stage.guidance, InstructSDSConfig | DatasetUpdateConfig):
        return []
    problems = []
    if edit is None:
        problems.append(
            f"guidance: {stage.guidance.kind} edits a finished run by an instruction - expected "
            "edit.run and edit.instruction."
        )
    keeps_views = isinstance(stage.guidance, DatasetUpdateConfig)
    if keeps_views and not isinstance(stage.background, SolidBackgroundConfig):
        problems.append(
            "background: dataset_update compares with views that it keeps - expected "
            f"{{kind: solid}}, got {stage.background.kind}."
        )
    if keeps_views and stage.losses.autoencoder != 0.0:
        problems.append(
            "losses.autoencoder: dataset_update encodes no render, so there is nothing to read "
            "back - expected 0."
        )
    return problems


def _part_problems(stage: StageConfig, edit: EditConfig | None) -> list[str]:
    """Whether a part of the scene can be shown alone."""
    if edit is None or edit.box is None:
        return []
    problems = []
    if isinstance(stage.renderer, MeshRendererConfig):
        problems.append(
            "renderer: is mesh, and edit.box shows a part of the scene alone, which a mesh cannot "
            "- expected {kind: volume}, or no edit.box."
        )
    if isinstance(stage.guidance, LayoutMultiViewConfig):
        problems.append(
            "guidance: layout_multiview shows one object after the other, and edit.box one part of "
            "the scene alone - expected another rule, or no edit.box."
        )
    return problems


def _critic_problems(stage: StageConfig, prior: PriorConfig) -> list[str]:
    """A critic sees single images with cameras, which a prior of several views takes for sets."""
    rule = stage.guidance.rule if isinstance(stage.guidance, ControlSDSConfig) else stage.guidance
    if not isinstance(rule, VSDConfig | DreamFlowConfig):
        return []
    problems = []
    if isinstance(stage.material, DiffuseMaterialConfig):
        problems.append(
            f"material: {rule.kind} has a critic that is not told how a render is lit - expected "
            "{kind: albedo}, got diffuse."
        )
    priors = {"prior": prior, "guidance.critic.prior": rule.critic.prior}
    return problems + [
        f"{key}: {rule.kind} has a critic of single images - expected a prior of single images, "
        f"such as pocket or diffusers, got {plain.kind}; or guidance.kind=multiview."
        for key, found in priors.items()
        if isinstance(plain := _innermost(found), SEVERAL_VIEWS)
    ]


def _innermost(prior: PriorConfig | None) -> PriorConfig | None:
    """The model under references and a subject."""
    while isinstance(prior, ReferencedPriorConfig | PersonalizedPriorConfig):
        prior = prior.base
    return prior


def _view_problems(stage: StageConfig, prior: PriorConfig) -> list[str]:
    """Whether a prior of several views gets the views it knows."""
    if not isinstance(stage.guidance, OF_SETS):
        return []
    problems, kind = [], stage.guidance.kind
    if isinstance(prior, ReferencedPriorConfig):
        prior = prior.base
    if isinstance(prior, PersonalizedPriorConfig):
        if prior.guidance == "consistency":
            problems.append(
                f"prior.guidance: consistency with guidance {kind} - expected plain, or another "
                "rule, such as sds or vsd."
            )
        prior = prior.base
    if not isinstance(prior, SEVERAL_VIEWS):
        problems.append(
            f"guidance: {kind} asks a prior of several views - expected a prior of kind "
            f"pocket_mv or mvdream, got {prior.kind}."
        )
    if not isinstance(stage.cameras, MultiViewCamerasConfig):
        problems.append(
            f"cameras: {kind} guidance needs sets of views - expected {{kind: multiview}}, got "
            f"{stage.cameras.kind}."
        )
    elif stage.cameras.n_views != VIEWS_OF_A_SET:
        problems.append(
            f"cameras.n_views: is {stage.cameras.n_views}, and the prior was trained on sets of "
            f"{VIEWS_OF_A_SET} views - expected {VIEWS_OF_A_SET}."
        )
    return problems + _background_problems(stage)


def _background_problems(stage: StageConfig) -> list[str]:
    """Whether the views of a set may stand before different colours."""
    background = stage.background
    if isinstance(background, SolidBackgroundConfig) or background.share == "batch":
        return []
    is_random = isinstance(background, RandomBackgroundConfig)
    chance = background.probability if is_random else background.random_probability
    if chance == 0.0:
        return []
    return [
        "background.share: is image, and the views of a set have one background in what the prior "
        "was trained on - expected batch."
    ]

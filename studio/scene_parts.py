"""What a stage optimises and what pulls at it, built from the scene; and how a stage hands over.

A later stage goes on with the field of the one before, or turns it into a mesh: then the surface is
taken once, at the start of the stage, and the colours come along exactly as they were.
"""

from __future__ import annotations

import torch

from guidance.base import GuidanceRule
from guidance.build import build_guidance
from guidance.configs import PlainPromptsConfig, RelationPromptsConfig
from guidance.debiasing import debias_prompt
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.original import Original, OriginalViews
from guidance.prompts import ViewPrompts, build_view_prompts
from guidance.relation_prompts import build_relation_prompts
from image_tools.diffusion.protocol import NoisePrior
from renderers.backgrounds import build_background
from renderers.boxes import around_box
from renderers.configs import FieldConfig, HashSDFConfig
from renderers.fields.hash_field import HashField
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField
from renderers.fields.painted_mesh import PaintedMeshField
from renderers.fields.tet_mesh import TetMeshField
from renderers.handoff import field_to_tets
from renderers.mesh_configs import GridTetsConfig, MeshFileConfig
from renderers.outputs import RenderOutput
from renderers.tet_mesh_renderer import TetMeshRenderer
from renderers.volume_renderer import VolumeRenderer
from studio.configs import SceneConfig
from studio.device import make_generators
from studio.layout import layout_objects

__all__ = ["SceneRenderer", "build_field", "build_renderer", "build_rule", "hand_over", "work_of"]

SceneRenderer = VolumeRenderer | TetMeshRenderer
"""A field or a mesh with its background: one particle of a stage."""


def build_field(config: FieldConfig, generator: torch.Generator) -> HashField:
    """The field for a config; ``generator`` draws its initial values."""
    if isinstance(config, HashSDFConfig):
        return HashSDFField(config, generator)
    return HashVolumeField(config, generator)


def build_renderer(scene: SceneConfig, index: int, generator: torch.Generator) -> SceneRenderer:
    """Field, background and renderer of stage ``index``, with initial values.

    A mesh starts as a ball; its surface and colours come from the stage before, from a file, or
    from a checkpoint.
    """
    stage, config = scene.stages[index], scene.field_of(index)
    if isinstance(config, MeshFileConfig):
        painted = PaintedMeshField(config, generator)
        background = build_background(stage.background, generator)
        return TetMeshRenderer(stage.renderer, painted, background, stage.material)
    if not isinstance(config, GridTetsConfig):
        field = build_field(config, generator)
        background = build_background(stage.background, generator)
        return VolumeRenderer(stage.renderer, field, background, stage.material)
    mesh = TetMeshField(config, build_field(scene.color_field, generator))
    if stage.geometry == "fixed":
        mesh.freeze_geometry()
    background = build_background(stage.background, generator)
    return TetMeshRenderer(stage.renderer, mesh, background, stage.material)


def build_rule(
    scene: SceneConfig, index: int, prior: NoisePrior, views: OriginalViews | None = None
) -> GuidanceRule:
    """The guidance rule of stage ``index``, with the scene's prompts encoded.

    Args:
        scene: the scene.
        index: of the stage.
        prior: of the stage.
        views: the finished scene that this one edits, if it does.
    """
    stage, prompts = scene.stages[index], _prompts(scene, index, prior)
    name = f"{stage.name}/rule"
    seed = make_generators((name,), seed=scene.seed, device=torch.device("cpu"))[name]
    original = None if views is None else _original(scene, prior, views)
    dataset = None
    if isinstance(stage.guidance, DatasetUpdateConfig):
        from studio.dataset_views import dataset_views  # imports this module

        dataset = dataset_views(stage.guidance, stage.cameras)
        if scene.edit and scene.edit.box:
            dataset = around_box(dataset, scene.edit.box)
    rule = stage.guidance
    if isinstance(rule, DreamFlowConfig):
        rule = rule.within(stage.steps // stage.particles)
    return build_guidance(
        rule,
        prior,
        prompts,
        seed=seed.initial_seed(),
        original=original,
        dataset=dataset,
        layout=layout_objects(scene, prior),
    )


def _prompts(scene: SceneConfig, index: int, prior: NoisePrior) -> ViewPrompts:
    """What guides stage ``index``: the instruction, the same for all views, or the prompt."""
    if isinstance(scene.stages[index].guidance, InstructSDSConfig | DatasetUpdateConfig):
        order = scene.edit.instruction
        return build_view_prompts(PlainPromptsConfig(), prior, order, scene.negative_prompt)
    prompt = scene.prompt_of(index)
    if isinstance(scene.view_prompts, RelationPromptsConfig):
        objects = [(item.prompt, item.box) for item in scene.layout]
        return build_relation_prompts(
            scene.view_prompts, prior, objects, prompt, scene.negative_prompt
        )
    by_view = None if scene.debias is None else debias_prompt(scene.debias, prompt)
    return build_view_prompts(
        scene.view_prompts, prior, prompt, scene.negative_prompt, by_view=by_view
    )


def _original(scene: SceneConfig, prior: NoisePrior, views: OriginalViews) -> Original:
    """What a rule that edits knows of the scene before the edit."""
    edit = scene.edit
    source = build_view_prompts(
        scene.view_prompts, prior, edit.source_prompt, scene.negative_prompt
    )
    return Original(views, source, edit.word)


def hand_over(previous: SceneRenderer, following: SceneRenderer, *, same_background: bool) -> None:
    """Start ``following`` from where ``previous`` ended: its field or mesh, and its background.

    Raises:
        EmptyGeometry: a mesh should begin and there is no surface.
    """
    field = previous.field
    if isinstance(following.field, TetMeshField) and not isinstance(field, TetMeshField):
        field = field_to_tets(field, following.field.config)
    following.field.load_state_dict(field.state_dict())
    if same_background:
        following.background.load_state_dict(previous.background.state_dict())


def work_of(renderer: SceneRenderer, output: RenderOutput) -> dict[str, float]:
    """What a render had to do, for the metrics: samples and occupied space, or triangles."""
    if output.mesh is not None:
        return {"faces": output.mesh.n_faces}
    samples = 0 if output.weights is None else len(output.weights)
    return {"samples": samples, "occupied": renderer.occupancy.occupied_fraction}

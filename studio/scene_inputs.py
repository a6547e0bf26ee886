"""What a scene needs from disk beside its priors, looked for before a run folder is made.

A missing mesh or adapter of a later stage must not turn out to be missing hours later.
"""

from __future__ import annotations

from guidance.control_sds_configs import ControlSDSConfig, SceneUniConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.subjects_sds_configs import SubjectsSDSConfig
from image_tools.configs import ReferencedPriorConfig
from image_tools.personalization.reference_configs import ReferenceToolConfig
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from image_tools.pocket.paths import adapter_files, adapter_path
from renderers.mesh_configs import MeshFileConfig
from studio.configs import SceneConfig
from studio.errors import ConfigError

__all__ = ["check_inputs"]


def check_inputs(scene: SceneConfig) -> None:
    """Refuse a scene whose mesh, adapters or instruction are missing.

    Raises:
        ConfigError: no mesh, no instruction, or no reference picture that can be read, is given.
        WeightsMissing: a ControlNet, an adapter or an edit model is not there.
    """
    from studio.stage_priors import priors_of

    for key, prior in priors_of(scene):
        if isinstance(prior, ReferencedPriorConfig):
            _check_references(prior.tool, f"{key}.tool", scene.prompt)
    if scene.subject is not None:
        for control in scene.subject.views.controls:
            adapter_path(control.net.weights, role="ControlNet")
    for k, stage in enumerate(scene.stages):
        if isinstance(stage.field, MeshFileConfig):
            from studio.start_mesh import check_mesh_file

            check_mesh_file(stage.field)
        rule = stage.guidance
        if isinstance(rule, ControlSDSConfig):
            for control in rule.controls:
                adapter_path(control.net.weights, role="ControlNet")
            if rule.uni is not None:
                _check_uni(rule.uni, f"stages.{k}.guidance.uni")
        if isinstance(rule, SubjectsSDSConfig):
            _check_tool_files(rule.tool, f"stages.{k}.guidance.tool")
        if isinstance(rule, InstructSDSConfig | DatasetUpdateConfig):
            adapter_path(rule.model.weights, role="edit model")
            if not scene.edit.instruction.strip():
                raise ConfigError(
                    "edit.instruction: is empty - expected what to change, as an order. "
                    'Add: edit.instruction="make it blue"'
                )


def _check_uni(uni: SceneUniConfig, key: str) -> None:
    """Whether the adapters are there, and the picture whose look is copied."""
    from studio.images.reading import check_readable

    adapter_files(uni.model, role=f"{key}.model")
    if uni.content is not None:
        check_readable([(f"{key}.content.path", uni.content.path)])
        if uni.content.encoder is not None:
            adapter_path(uni.content.encoder, role=f"{key}.content.encoder")


def _check_references(tool: ReferenceToolConfig, key: str, prompt: str) -> None:
    """Whether the tool's pictures can be read and the prompt suits it."""
    problems = [*tool.problems(prompt), *tool.scene_problems()]
    if isinstance(tool, StyleAlignedConfig) and tool.image is None:
        problems = [*problems, "image: is empty - expected a picture whose style is taken."]
    if problems:
        raise ConfigError(f"{key}.{problems[0]}")
    _check_pictures(tool, key)


def _check_tool_files(tool: ReferenceToolConfig, key: str) -> None:
    """Whether the tool's pictures can be read and its models are there."""
    for name, path in tool.models():
        adapter_path(path, role=f"{key}.{name}")
    _check_pictures(tool, key)


def _check_pictures(tool: ReferenceToolConfig, key: str) -> None:
    from studio.images.reading import check_readable

    check_readable((f"{key}.{name}", path) for name, path in tool.pictures())

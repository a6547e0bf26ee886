"""What a scene needs from disk, looked for before a run folder is made; ``studio doctor`` asks too.

A missing mesh or adapter of a later stage must not turn out to be missing hours later.
"""

from __future__ import annotations

from collections.abc import Iterator

from guidance.control_sds_configs import ControlSDSConfig, SceneUniConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.subjects_sds_configs import SubjectsSDSConfig
from image_tools.configs import ReferencedPriorConfig
from image_tools.personalization.reference_configs import ReferenceToolConfig
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from image_tools.pocket.paths import adapter_path
from renderers.mesh_configs import MeshFileConfig
from studio.configs import SceneConfig
from studio.errors import ConfigError

__all__ = ["check_files", "check_inputs", "check_priors", "named_models"]


def named_models(scene: SceneConfig) -> Iterator[tuple[str, str]]:
    """Every model that a scene names beside its priors: its key, and the folder, file or name."""
    if scene.subject is not None:
        for k, control in enumerate(scene.subject.views.controls):
            yield f"subject.views.controls.{k}.net.weights", control.net.weights
    for k, stage in enumerate(scene.stages):
        rule, key = stage.guidance, f"stages.{k}.guidance"
        if isinstance(rule, ControlSDSConfig):
            for number, control in enumerate(rule.controls):
                yield f"{key}.controls.{number}.net.weights", control.net.weights
            if rule.uni is not None:
                yield from _uni_models(rule.uni, f"{key}.uni")
        if isinstance(rule, SubjectsSDSConfig):
            yield from ((f"{key}.tool.{name}", path) for name, path in rule.tool.models())
        if isinstance(rule, InstructSDSConfig | DatasetUpdateConfig):
            yield f"{key}.model.weights", rule.model.weights


def _uni_models(uni: SceneUniConfig, key: str) -> Iterator[tuple[str, str]]:
    """The adapter, and the encoder of the picture whose look is copied."""
    yield f"{key}.model", uni.model
    if uni.content is not None and uni.content.encoder is not None:
        yield f"{key}.content.encoder", uni.content.encoder


def check_inputs(scene: SceneConfig) -> None:
    """Refuse a scene whose mesh, pictures, instruction, or models beside its priors are missing.

    Raises:
        ConfigError: no mesh, no instruction, or no reference picture that can be read, is given.
        WeightsMissing: a ControlNet, an adapter or an edit model is not there.
    """
    for key, name in named_models(scene):
        adapter_path(name, role=key)
    check_files(scene)


def check_priors(scene: SceneConfig) -> None:
    """Refuse a scene whose priors are missing; the hub may be asked, which takes long.

    Raises:
        WeightsMissing: some weights are not there.
        UnsupportedModel: a prior is of a design that does not fit.
    """
    from image_tools.diffusion.layout import find_prior_files
    from studio.stage_priors import priors_of

    for _, prior in priors_of(scene):
        find_prior_files(prior)


def check_files(scene: SceneConfig) -> None:
    """Refuse a scene whose mesh, pictures or instruction are missing.

    Raises:
        ConfigError: no mesh, no instruction, or no reference picture that can be read, is given.
    """
    from studio.images.reading import check_readable
    from studio.stage_priors import priors_of

    for key, prior in priors_of(scene):
        if isinstance(prior, ReferencedPriorConfig):
            _check_references(prior.tool, f"{key}.tool", scene.prompt)
    for k, stage in enumerate(scene.stages):
        if isinstance(stage.field, MeshFileConfig):
            from studio.start_mesh import check_mesh_file

            check_mesh_file(stage.field)
        rule, key = stage.guidance, f"stages.{k}.guidance"
        if isinstance(rule, ControlSDSConfig) and rule.uni and rule.uni.content:
            check_readable([(f"{key}.uni.content.path", rule.uni.content.path)])
        if isinstance(rule, SubjectsSDSConfig):
            _check_pictures(rule.tool, f"{key}.tool")
        if isinstance(rule, InstructSDSConfig | DatasetUpdateConfig):
            _check_instruction(scene)


def _check_instruction(scene: SceneConfig) -> None:
    """Whether the scene says what to change."""
    if not scene.edit.instruction.strip():
        raise ConfigError(
            "edit.instruction: is empty - expected what to change, as an order. "
            'Add: edit.instruction="make it blue"'
        )


def _check_references(tool: ReferenceToolConfig, key: str, prompt: str) -> None:
    """Whether the tool's pictures can be read and the prompt suits it."""
    problems = [*tool.problems(prompt), *tool.scene_problems()]
    if isinstance(tool, StyleAlignedConfig) and tool.image is None:
        problems = [*problems, "image: is empty - expected a picture whose style is taken."]
    if problems:
        raise ConfigError(f"{key}.{problems[0]}")
    _check_pictures(tool, key)


def _check_pictures(tool: ReferenceToolConfig, key: str) -> None:
    from studio.images.reading import check_readable

    check_readable((f"{key}.{name}", path) for name, path in tool.pictures())

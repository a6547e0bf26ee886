"""Every task of a scene file that makes an asset or pictures, told apart by ``task``.

Files with ``task: personalize`` are read by ``studio.commands.personalize``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from studio.config_types import hints_of, members
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.images.configs import ImageTaskConfig
from studio.personalize_configs import PersonalizeConfig
from studio.scene_file import did_you_mean
from studio.suggestions import command

__all__ = ["DEFAULT_TASK", "TaskConfig", "task_class", "tasks_of"]

TaskConfig = SceneConfig | ImageTaskConfig
DEFAULT_TASK = "text_to_3d"


def tasks_of(cls: type) -> tuple[str, ...]:
    """The tasks that a config class serves; none if it is not that of a scene file."""
    return get_args(hints_of(cls).get("task"))


def task_class(tree: Mapping[str, Any], where: str) -> type:
    """The class of a scene file's mapping.

    Raises:
        ConfigError: no such task, or one that makes neither an asset nor pictures.
    """
    classes = {task: cls for cls in members(TaskConfig) for task in tasks_of(cls)}
    task, teaching = tree.get("task", DEFAULT_TASK), tasks_of(PersonalizeConfig)
    if task in teaching:
        raise ConfigError(
            f"{where}: task {task} teaches a prior and makes neither an asset nor pictures - "
            f"expected a scene that does. Such a file is for: {command('run', 'FILE')}"
        )
    if task not in classes:
        known = (*classes, *teaching)
        hint = did_you_mean(task, known)
        raise ConfigError(f"{where}: task: unknown {task!r}.{hint} Tasks: {', '.join(known)}.")
    return classes[task]

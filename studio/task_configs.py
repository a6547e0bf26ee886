"""Every task of ``studio run`` that a scene file may name, told apart by ``task``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from studio.config_types import hints_of, members
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.images.configs import ImageTaskConfig
from studio.scene_file import did_you_mean

__all__ = ["DEFAULT_TASK", "TaskConfig", "task_class", "tasks_of"]

TaskConfig = SceneConfig | ImageTaskConfig
DEFAULT_TASK = "text_to_3d"


def tasks_of(cls: type) -> tuple[str, ...]:
    """The tasks that a config class serves; none if it is not that of a scene file."""
    return get_args(hints_of(cls).get("task"))


def task_class(tree: Mapping[str, Any], where: str) -> type:
    """The class of a scene file's mapping.

    Raises:
        ConfigError: no such task.
    """
    classes = {task: cls for cls in members(TaskConfig) for task in tasks_of(cls)}
    task = tree.get("task", DEFAULT_TASK)
    if task not in classes:
        hint = did_you_mean(task, classes)
        raise ConfigError(f"{where}: task: unknown {task!r}.{hint} Tasks: {', '.join(classes)}.")
    return classes[task]

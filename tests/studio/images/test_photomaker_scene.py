"""The PhotoMaker preset: a form to fill in, whose prompt must say whom the photos show."""

from __future__ import annotations

import pytest

from studio.config import load_task
from studio.errors import ConfigError


def test_the_preset_is_a_form():
    config = load_task("reference-photomaker", ["tool.photos=[me.jpg]"]).config
    assert (config.task, config.means) == ("reference_image", "photomaker")
    assert config.tool.pictures() == [("photos.0", "me.jpg")]
    assert config.tool.models() == [("weights", "photomaker-v1.bin")]
    assert config.tool.plain_prompt(config.prompt) == "a portrait of a man, oil painting"


def test_prompts_without_the_trigger_are_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"tool\.trigger: The prompt 'a man' does not hold the"):
        load_task("reference-photomaker", ["prompt=a man"])

"""Export settings that make no sense are refused with a reason."""

from __future__ import annotations

import pytest

from studio.export.configs import ExportConfig

WRONG = {
    "resolution": (4, "resolution is 4 - expected at least 8."),
    "search_resolution": (1000, "search_resolution is 1000 - expected at most 256."),
    "max_faces": (0, "max_faces is 0 - expected at least 100."),
    "texture_size": (100_000, "texture_size is 100000 - expected at most 8192."),
    "height_m": (0.0, "height_m is 0.0 - expected a length above 0, in metres."),
    "threshold": (-1.0, "threshold is -1.0 - expected auto or a density above 0."),
    "min_component": (1.5, "min_component is 1.5 - expected at most 1."),
    "blur_cells": (float("nan"), "blur_cells is nan - expected at least 0."),
    "formats": ((), "formats is empty - expected some of glb, obj, ply."),
}


@pytest.mark.parametrize(("name", "case"), WRONG.items(), ids=WRONG.keys())
def test_wrong_value_is_named(name, case):
    value, message = case
    with pytest.raises(ValueError) as error:
        ExportConfig(**{name: value})
    assert str(error.value) == message


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ValueError) as error:
        ExportConfig(resolution=1, max_faces=1)
    assert "resolution" in str(error.value)
    assert "max_faces" in str(error.value)

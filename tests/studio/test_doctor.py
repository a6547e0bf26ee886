"""The doctor: finds what is there, says what is missing, and exits accordingly."""

from __future__ import annotations

import json

import pytest

from studio.commands import doctor


def test_sound_machine_has_no_problems(tiny_scene, capsys):
    doctor.run(str(tiny_scene), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is True
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["torch"]["state"] == "ok"
    assert by_name["cpu"]["state"] == "ok"
    assert "numba on cpu" in by_name["chosen"]["detail"] or "cuda" in by_name["chosen"]["detail"]
    assert "fingerprint" in by_name[f"prior of {tiny_scene}"]["detail"]
    assert {"nvdiffrast", "tinycudann", "nerfacc"} <= set(by_name)


def test_missing_weights_are_a_problem_with_exit_code_3(tiny_scene, tmp_path, capsys):
    text = tiny_scene.read_text(encoding="utf-8")
    scene = tmp_path / "scene.yaml"
    scene.write_text(text.replace("/pocket}", "/nothing}"), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        doctor.run(str(scene))
    assert stop.value.code == 3
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if "PROBLEM" in line]
    assert "prior of" in line
    assert "1 problem(s) found" in captured.err

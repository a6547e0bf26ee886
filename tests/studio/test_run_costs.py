"""Costs of a run that several processes worked on."""

from __future__ import annotations

from studio.run_costs import costs_with

FIRST = {"allocated": 900, "reserved": 1000}


def test_seconds_add_up_and_memory_is_the_highest():
    info = costs_with({}, seconds={"load": 1.0, "optimise": 20.0}, peak_bytes=900, stage_bytes={})
    assert info == {"seconds": {"load": 1.0, "optimise": 20.0}, "peak_memory_bytes": 900}
    again = costs_with(info, seconds={"load": 2.0, "optimise": 0.5}, peak_bytes=300, stage_bytes={})
    assert again == {"seconds": {"load": 3.0, "optimise": 20.5}, "peak_memory_bytes": 900}
    more = costs_with(again, seconds={}, peak_bytes=901, stage_bytes={})
    assert more["peak_memory_bytes"] == 901


def test_each_stage_keeps_its_own_highest_use():
    info = {"stage_memory_bytes": {"shape": FIRST}}
    now = {"shape": {"allocated": 950, "reserved": 960}, "detail": {"allocated": 5, "reserved": 6}}
    costs = costs_with(info, seconds={}, peak_bytes=0, stage_bytes=now)
    assert costs["stage_memory_bytes"] == {
        "shape": {"allocated": 950, "reserved": 1000},
        "detail": {"allocated": 5, "reserved": 6},
    }


def test_what_earlier_processes_noted_without_stages_stays():
    assert "stage_memory_bytes" not in costs_with(
        {"stage_memory_bytes": {"shape": FIRST}}, seconds={}, peak_bytes=0, stage_bytes={}
    )

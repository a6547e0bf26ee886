"""Planners: rules, files, and a language model behind a real local server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from image_tools.control.planner_configs import (
    EndpointPlannerConfig,
    FilePlannerConfig,
    RulePlannerConfig,
)
from image_tools.control.planners import PlanError, build_planner, read_answer
from renderers.errors import StudioError

GOOD = (
    "Two things.\nFinal split ratio: 1,1\nRegional Prompt: a dog BREAK a cat\n\n"
    "Better:\n**Final split ratio: 1,1,1; 2,1**\n"
    "Regional Prompt: a red kite BREAK a white\ncloud BREAK a green meadow\n\nDone."
)


class Raw(bytes):
    """What a server says in the place of a response."""


class Server:
    """An OpenAI-compatible endpoint that gives fixed answers and remembers what it was asked."""

    def __init__(self, *answers: str | int | bytes) -> None:
        self.asked: list[tuple[str, dict, dict]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, dict(self.headers), body))
                answer = answers[min(len(server.asked), len(answers)) - 1]
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                if isinstance(answer, Raw):
                    self.wfile.write(answer)
                    return
                content = answer
                if isinstance(answer, str):
                    choice = {"message": {"role": "assistant", "content": answer}}
                    content = json.dumps({"choices": [choice]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def planner(self, **settings):
        return build_planner(EndpointPlannerConfig(self.url, "tiny", timeout_s=20.0, **settings))


def by_rule(prompt):
    plan = build_planner(RulePlannerConfig()).plan(prompt)
    return plan.ratio, [region.prompt for region in plan.regions]


@pytest.mark.parametrize(
    ("prompt", "ratio", "prompts"),
    [
        ("a red ball left of a blue cube", "1,1", ["a red ball", "a blue cube"]),
        ("a red ball to the right of a cube", "1,1", ["a cube", "a red ball"]),
        ("a bird above a tree.", "1,1; 1,1", ["a bird", "a tree"]),
        ("a cat under a table", "1,1; 1,1", ["a table", "a cat"]),
        ("a dog, a cat and a sandy island", "1,1,1", ["a dog", "a cat", "a sandy island"]),
        ("a dog, a cat, and a cow", "1,1,1", ["a dog", "a cat", "a cow"]),
        (
            "a mug on top of a box left of a lamp",
            "1,1; 1,1,1",
            ["a mug", "a box", "a lamp"],
        ),
        ("A Duck Left Of a cat", "1,1", ["A Duck", "a cat"]),
        ("a cube left of a ball right of a cone", "1,1,1", ["a cube", "a cone", "a ball"]),
    ],
)
def test_rules_place_things_by_their_relations(prompt, ratio, prompts):
    found, regions = by_rule(prompt)
    assert found == ratio
    if prompt.endswith("cone"):  # two things at one place move apart
        assert sorted(regions) == sorted(prompts)
    else:
        assert regions == prompts


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (
            "a red mushroom left of a blue teapot, side view",
            ["a red mushroom", "a blue teapot"],
        ),
        ("a dog next to a cat, 3D render, oil on canvas", ["a dog", "a cat"]),
        ("a black and white cat left of a dog", ["a black and white cat", "a dog"]),
        ("a dog left of a black and white cat", ["a dog", "a black and white cat"]),
        ("a big, red ball left of a cube", ["a big, red ball", "a cube"]),
        ("salt and pepper left of the mug", ["salt and pepper", "the mug"]),
        ("red ball left of blue cube", ["red ball", "blue cube"]),
        ("two dogs, 3 cats and the cow", ["two dogs", "3 cats", "the cow"]),
        ("a dog And another dog", ["a dog", "another dog"]),
        ("a dog, and, a cat", ["a dog", "a cat"]),
        ("a dog, left of a cat", ["a dog", "a cat"]),
        ("a dog and left of a cat", ["a dog", "a cat"]),
        ("a hand, an island", ["a hand", "an island"]),
    ],
)
def test_rules_list_things_and_leave_words_about_them_where_they_are(prompt, prompts):
    assert by_rule(prompt) == (",".join("1" * len(prompts)), prompts)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red ball",
        "",
        "a sandy understanding",
        "a black and white cat",
        "a red ball, side view",
        "a dog left of , ",
    ],
)
def test_rules_refuse_prompts_without_relations(prompt):
    with pytest.raises(PlanError, match="states no relation between things"):
        by_rule(prompt)


def test_a_file_s_plan_is_read_whole(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "ratio: 1,2\nbase_ratio: 0.2\nmode: latent\nregions:\n- a cat\n"
        "- {prompt: a dog, base_ratio: 0.7, negative_prompt: blue}\n"
    )
    plan = build_planner(FilePlannerConfig(str(path))).plan("whatever")
    assert (plan.ratio, plan.mode, plan.base_ratios) == ("1,2", "latent", (0.2, 0.7))
    assert plan.regions[1].negative_prompt == "blue"
    path.write_text('{"ratio": 1, "regions": ["a cat"]}')
    assert build_planner(FilePlannerConfig(str(path))).plan("").regions[0].prompt == "a cat"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio: [", "cannot be read"),
        ("just text", "has no list of regions"),
        ("ratio: 1\nregions: {a: 1}", "has no list of regions"),
        ("ratio: 1\nregions: [a]\ncolour: red", r"unknown keys \['colour'\]"),
        ("ratio: 1\nregions: [{text: a}]", r"unknown keys \['text'\]"),
        ("regions: [a]", "lacks ratio"),
        ("ratio: 1\nregions: [a]\nmode: both", "has mode 'both'"),
        ("ratio: 1,x\nregions: [a, b]", "has 'x'"),
        ("ratio: 1,1\nregions: [a]", "makes 2 regions"),
        ("ratio: 1\nregions: [a]\nbase_ratio: much", "base_ratio is 'much'"),
    ],
)
def test_files_without_a_plan_are_refused(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(StudioError, match=message):
        build_planner(FilePlannerConfig(str(path))).plan("whatever")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        build_planner(FilePlannerConfig(str(tmp_path / "none.yaml"))).plan("")


def test_a_model_s_last_plan_counts(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Server(GOOD) as server:
        plan = server.planner(api_key_variable="MY_KEY", base_ratio=0.3).plan("a kite")
    assert plan.ratio == "1,1,1; 2,1"
    assert [r.prompt for r in plan.regions] == ["a red kite", "a white cloud", "a green meadow"]
    assert plan.base_ratio == 0.3
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "tiny"
    assert body["messages"][1] == {"role": "user", "content": "a kite"}


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with Server(GOOD) as server:
        server.planner(api_key_variable="MY_KEY").plan("a kite")
    assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize(
    ("answer", "ratio"),
    [
        ("Final split ratio: 1,1\n\n2. Regional Prompt: a dog BREAK a cat", "1,1"),
        ("1. Final split ratio: 1,1\n2. Regional Prompt: a dog BREAK a cat", "1,1"),
        ("Final split ratio:\n1, 2\n\nRegional Prompt:\na dog BREAK a cat", "1, 2"),
        ("Final split ratio:\t1,1 ;\t2,1\n\nRegional Prompt: a dog BREAK a cat", "1,1 ; 2,1"),
        ("**Final split ratio**: `1.5;1`\n3\n**Regional Prompt**: a dog BREAK a cat", "1.5;1"),
    ],
)
def test_an_answer_s_ratio_ends_with_its_line(answer, ratio):
    plan = read_answer(answer, base_ratio=0.5)
    assert plan.ratio == ratio
    assert [region.prompt for region in plan.regions] == ["a dog", "a cat"]


@pytest.mark.parametrize(
    "bad",
    [
        "I would put the kite at the top.",
        "Final split ratio: 1,1\nRegional Prompt: a dog",
        "Final split ratio: 1,,1\nRegional Prompt: a dog BREAK a cat",
        "Final split ratio: 1,1",
        "",
        b"<html>hello</html>",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
    ],
)
def test_a_bad_answer_is_asked_for_again_and_refused_in_the_end(bad):
    with Server(bad, GOOD) as server:
        assert len(server.planner().plan("a kite").regions) == 3
        assert len(server.asked) == 2
    with Server(bad) as server, pytest.raises(PlanError, match="gave no plan in 2 answers"):
        server.planner(attempts=2).plan("a kite")
    assert len(server.asked) == 2


def test_a_server_that_refuses_or_is_down_is_an_error_at_once():
    with Server(401) as server, pytest.raises(PlanError, match=r"status 401.*the key in OPENAI"):
        server.planner().plan("a kite")
    assert len(server.asked) == 1
    with pytest.raises(PlanError, match=r"cannot be reached.*use kind: rule"):
        server.planner().plan("a kite")  # closed by now
    wrong = EndpointPlannerConfig("no address", "tiny")
    with pytest.raises(PlanError, match="cannot be reached"):
        build_planner(wrong).plan("a kite")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "IncompleteRead"),
    ],
)
def test_what_speaks_no_http_or_breaks_off_is_an_error_at_once(said, reason):
    with Server(Raw(said)) as server, pytest.raises(PlanError, match=f"{reason}.*use kind: rule"):
        server.planner().plan("a kite")
    assert len(server.asked) == 1

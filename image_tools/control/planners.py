"""Who decides which part of the image shows what (RPG, arXiv 2401.11708, section 3.2).

A planner turns a prompt into regions with prompts of their own. Rules read the relations that the
prompt states, a file repeats what someone wrote, and a language model, behind an endpoint or in a
folder of this machine, is asked for the two lines

    Final split ratio: 1,1,1; 2,1
    Regional Prompt: a red kite BREAK a white cloud BREAK a green meadow

What is not a valid plan is refused, from whichever source it comes.

    config = build_planner(RulePlannerConfig()).plan("a red ball left of a blue cube")
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from image_tools.control.planner_configs import (
    EndpointPlannerConfig,
    FilePlannerConfig,
    LocalPlannerConfig,
    PlannerConfig,
    RulePlannerConfig,
)
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from renderers.errors import StudioError

__all__ = [
    "EndpointPlanner",
    "FilePlanner",
    "LocalPlanner",
    "PlanError",
    "Planner",
    "RulePlanner",
    "build_planner",
    "read_answer",
]

# Where the thing after the words lies as seen from the thing before them: columns, rows.
PLACES = {
    "left of": (1, 0),
    "right of": (-1, 0),
    "above": (0, 1),
    "on top of": (0, 1),
    "below": (0, -1),
    "beneath": (0, -1),
    "under": (0, -1),
    "next to": (1, 0),
    "beside": (1, 0),
}
LISTED = {"and": (1, 0), ",": (1, 0)}
RELATIONS = PLACES | LISTED
NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
# How a thing in a list begins: 'black and white' and 'a teapot, side view' list no things.
_THING = rf"(?:a|an|the|another|{NUMBERS}|\d+)(?!\w)"
_PLACE = "|".join(sorted(map(re.escape, PLACES), key=len, reverse=True))
RELATION = re.compile(
    rf"\s*(?:,?\s*(?<!\w)(?:and )?(?:to the |on the )?({_PLACE})(?!\w)"
    rf"|(?<!\w)(and)(?=[\s,]+{_THING})|(,)(?=\s*(?:and[\s,]+)?{_THING}))\s*",
    re.IGNORECASE,
)

# Blanks within a line: the next one may begin with a number of its own, as in a list.
RATIO_LINE = re.compile(r"final split ratio\W*?([\d.,; \t]*\d)", re.IGNORECASE)
PROMPT_LINE = re.compile(r"regional prompt\W*?(\w.*?)(?=\n\s*\n|\Z)", re.IGNORECASE | re.DOTALL)

INSTRUCTIONS = """You plan pictures. Divide the picture that the user describes into rectangular \
regions, one for each thing or group that must not be mixed up with others, and describe each \
region in one phrase with all of its attributes. Layout: rows are separated by ';', columns by \
','. A single row lists the widths of its columns, for instance 1,2. Several rows each list their \
height first and then the widths of their columns, for instance 1,1,1; 2,1 is two columns above \
one of twice their height. Regions are in reading order. Think briefly, then end with exactly \
these two lines:
Final split ratio: <layout>
Regional Prompt: <first region> BREAK <second region> BREAK ..."""


class PlanError(StudioError):
    """No valid plan could be had."""

    exit_code = 2


@runtime_checkable
class Planner(Protocol):
    """Anything that divides a picture."""

    def plan(self, prompt: str) -> RegionalConfig:
        """Regions for a prompt, which stays the base prompt."""
        ...


class RulePlanner:
    """Places things by the relations that the prompt states; the same prompt, the same plan."""

    def __init__(self, config: RulePlannerConfig) -> None:
        """Plan by ``config``."""
        self.config = config

    def plan(self, prompt: str) -> RegionalConfig:
        """Regions on a grid. Each thing lies relative to the one before it.

        A comma or "and" begins a thing only before an article, a number or "another". Other words
        behind a comma stay in their thing's phrase ("a big, red ball left of a cube"); those that
        end the prompt ("..., side view") are of the whole prompt, and of no region.

        Raises:
            PlanError: the prompt states no relation.
        """
        phrases, moves = _phrases(prompt)
        if len(phrases) < 2:
            raise PlanError(
                f"The prompt '{prompt}' states no relation between things - expected one of: "
                f"{', '.join(PLACES)}, or 'and' or a comma before 'a', 'the' or a number. Say "
                "where things are, or write the plan into a file."
            )
        places = [(0, 0)]
        for column, row in moves:
            place = (places[-1][0] + column, places[-1][1] + row)
            while place in places:
                place = (place[0] + (column or 1), place[1])
            places.append(place)
        order = sorted(range(len(places)), key=lambda k: (places[k][1], places[k][0]))
        rows = sorted({row for _, row in places})
        widths = [",".join("1" for _, row in places if row == one) for one in rows]
        ratio = widths[0] if len(rows) == 1 else "; ".join(f"1,{width}" for width in widths)
        return RegionalConfig(
            ratio,
            tuple(RegionConfig(phrases[k]) for k in order),
            base_ratio=self.config.base_ratio,
        )


class FilePlanner:
    """The plan in a file, whatever the prompt."""

    def __init__(self, config: FilePlannerConfig) -> None:
        """Plan by ``config``."""
        self.path = Path(config.path).expanduser()

    def plan(self, prompt: str) -> RegionalConfig:
        """The file's plan.

        Raises:
            PlanError: the file is absent, no YAML, or no plan.
        """
        import yaml

        try:
            found = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PlanError(
                f"The plan '{self.path}' cannot be read ({str(error).splitlines()[0]}) - expected "
                "a YAML or JSON file. Check the path and its text."
            ) from error
        return _plan_of(found, self.path)


class EndpointPlanner:
    """Asks a language model."""

    def __init__(self, config: EndpointPlannerConfig) -> None:
        """Plan by ``config``."""
        self.config = config

    def plan(self, prompt: str) -> RegionalConfig:
        """The model's plan; an answer that is none is asked for again.

        Raises:
            PlanError: the endpoint is down or refuses, or no answer was a plan.
        """
        config = self.config
        return _first_plan(
            lambda: self._ask(prompt),
            model=config.model,
            attempts=max(config.attempts, 1),
            base_ratio=config.base_ratio,
        )

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.config.model,
            "temperature": self.config.temperature,
            "messages": [
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": prompt},
            ],
        }
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.config.api_key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.config.url.rstrip('/')}/chat/completions"
        try:
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=self.config.timeout_s) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise PlanError(
                f"The planner '{address}' answered with status {error.code} ({error.reason}). "
                "Check its address, the model's name and the key in "
                f"{self.config.api_key_variable}."
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PlanError(
                f"The planner '{address}' cannot be reached ({reason}). Expected an "
                "OpenAI-compatible server there. Start it, correct url, or use kind: rule."
            ) from error
        except http.client.HTTPException as error:
            raise PlanError(
                f"The planner '{address}' does not speak HTTP, or broke off ({error!r:.80}). "
                "Expected an OpenAI-compatible server there. Correct url, look into its log, or "
                "use kind: rule."
            ) from error
        return _content(answer)


class LocalPlanner:
    """Asks a language model in a folder of this machine."""

    def __init__(self, config: LocalPlannerConfig) -> None:
        """Plan by ``config``."""
        self.config = config

    def plan(self, prompt: str) -> RegionalConfig:
        """The model's likeliest answer as a plan; the same prompt, the same plan.

        Raises:
            PlanError: the answer is no plan; StudioError if the model cannot be read or run.
        """
        from image_tools.control.local_model import answer_of

        return _first_plan(
            lambda: answer_of(self.config, INSTRUCTIONS, prompt),
            model=self.config.path,
            attempts=1,  # it would say the same again
            base_ratio=self.config.base_ratio,
        )


def build_planner(config: PlannerConfig) -> Planner:
    """The planner of a configuration."""
    if isinstance(config, RulePlannerConfig):
        return RulePlanner(config)
    if isinstance(config, FilePlannerConfig):
        return FilePlanner(config)
    if isinstance(config, LocalPlannerConfig):
        return LocalPlanner(config)
    return EndpointPlanner(config)


def read_answer(answer: str, *, base_ratio: float) -> RegionalConfig:
    """The plan in a language model's answer: the last one, after what it thought aloud.

    Raises:
        StudioError: there is none, or it does not fit together.
    """
    text = answer.replace("*", "").replace("`", "")
    ratios, prompts = RATIO_LINE.findall(text), PROMPT_LINE.findall(text)
    if not ratios or not prompts:
        missing = "Final split ratio:" if not ratios else "Regional Prompt:"
        raise PlanError(
            f"The answer '{' '.join(answer.split())[:60]}' has no '{missing}' - expected a layout "
            "and a prompt for each region. Ask again."
        )
    phrases = [" ".join(part.split()) for part in re.split(r"\bBREAK\b", prompts[-1])]
    regions = tuple(RegionConfig(phrase) for phrase in phrases if phrase)
    return RegionalConfig(" ".join(ratios[-1].split()), regions, base_ratio=base_ratio)


def _first_plan(
    ask: Callable[[], str], *, model: str, attempts: int, base_ratio: float
) -> RegionalConfig:
    """The first answer that is a plan."""
    wrong = None
    for _ in range(attempts):
        answer = ask()
        try:
            return read_answer(answer, base_ratio=base_ratio)
        except StudioError as error:
            wrong = error
    raise PlanError(
        f"The model '{model}' gave no plan in {attempts} answer{'s' * (attempts > 1)}. The last "
        f"one: {wrong} Try a larger model, or write the plan into a file."
    ) from wrong


def _content(body: bytes) -> str:
    """The text of a chat completion, or of whatever else a server says."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return text
    return content if isinstance(content, str) else ""


def _phrases(prompt: str) -> tuple[list[str], list[tuple[int, int]]]:
    """What lies between relations, and the relations."""
    pieces = RELATION.split(prompt.strip())
    phrases, moves = [pieces[0]], []
    for place, also, comma, phrase in zip(*(pieces[k::4] for k in (1, 2, 3, 4)), strict=True):
        move = RELATIONS[(place or also or comma).lower()]
        if not phrases[-1].strip(" .,"):  # ", and": the second word says more
            phrases.pop()
            moves = moves[:-1] if phrases else moves
        if phrases:
            moves.append(move)
        phrases.append(phrase)
    # How the picture is to look is said behind the last thing.
    phrases[-1] = phrases[-1].split(",")[0]
    if not phrases[-1].strip(" .") and moves:
        phrases.pop()
        moves.pop()
    return [phrase.strip(" .,") for phrase in phrases], moves


def _plan_of(found: Any, path: Path) -> RegionalConfig:
    known = {field.name for field in fields(RegionalConfig)}
    region_keys = {field.name for field in fields(RegionConfig)}
    if not isinstance(found, dict) or not isinstance(found.get("regions"), list):
        raise PlanError(
            f"The plan '{path}' has no list of regions - expected the keys ratio and regions. Add "
            "them."
        )
    regions = [one if isinstance(one, dict) else {"prompt": one} for one in found["regions"]]
    wrong = set(found) - known | {key for one in regions for key in set(one) - region_keys}
    if wrong or "ratio" not in found or any("prompt" not in one for one in regions):
        raise PlanError(
            f"The plan '{path}' has unknown keys {sorted(map(str, wrong))} or lacks ratio or a "
            f"prompt - expected {sorted(known)}, and for each region {sorted(region_keys)}."
        )
    mode = found.get("mode", "attn_crop")
    if mode not in ("attn_crop", "attn_resize", "latent"):
        raise PlanError(
            f"The plan '{path}' has mode '{mode}' - expected attn_crop, attn_resize or latent."
        )
    settings = {**found, "ratio": str(found["ratio"])}
    settings["regions"] = tuple(
        RegionConfig(**{**one, "prompt": str(one["prompt"])}) for one in regions
    )
    return RegionalConfig(**settings)

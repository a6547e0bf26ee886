"""What the toybox contains: kinds, colours and patterns, with the words for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scenes.toybox.kinds import animals, food, home, outdoors, toys, vehicles
from scenes.toybox.palette import COLORS
from scenes.toybox.parts import Part

__all__ = ["COLOR_NAMES", "KINDS", "KIND_NAMES", "PATTERNS", "Kind"]

Builder = Callable[[np.random.Generator], list[Part]]


@dataclass(frozen=True)
class Kind:
    """One kind of object: its group, the noun, other nouns for it, and its builder."""

    group: str
    noun: str
    synonyms: tuple[str, ...]
    build: Builder


KINDS: dict[str, Kind] = {
    "duck": Kind("animal", "duck", ("rubber duck",), animals.duck),
    "fish": Kind("animal", "fish", ("goldfish",), animals.fish),
    "rabbit": Kind("animal", "rabbit", ("bunny",), animals.rabbit),
    "penguin": Kind("animal", "penguin", (), animals.penguin),
    "turtle": Kind("animal", "turtle", ("tortoise",), animals.turtle),
    "car": Kind("vehicle", "car", ("automobile",), vehicles.car),
    "train": Kind("vehicle", "train", ("steam engine", "locomotive"), vehicles.train),
    "rocket": Kind("vehicle", "rocket", ("spaceship",), vehicles.rocket),
    "airplane": Kind("vehicle", "airplane", ("plane",), vehicles.airplane),
    "sailboat": Kind("vehicle", "sailboat", ("sailing boat",), vehicles.sailboat),
    "apple": Kind("food", "apple", (), food.apple),
    "donut": Kind("food", "donut", ("doughnut",), food.donut),
    "ice_cream": Kind("food", "ice cream cone", ("ice cream",), food.ice_cream),
    "mushroom": Kind("food", "mushroom", ("toadstool",), food.mushroom),
    "hamburger": Kind("food", "hamburger", ("burger",), food.hamburger),
    "cupcake": Kind("food", "cupcake", ("muffin",), food.cupcake),
    "chair": Kind("furniture", "chair", (), home.chair),
    "table": Kind("furniture", "table", ("round table",), home.table),
    "lamp": Kind("furniture", "lamp", ("table lamp",), home.lamp),
    "sofa": Kind("furniture", "sofa", ("couch",), home.sofa),
    "house": Kind("building", "house", ("cottage",), outdoors.house),
    "castle": Kind("building", "castle", ("fortress",), outdoors.castle),
    "lighthouse": Kind("building", "lighthouse", (), outdoors.lighthouse),
    "tree": Kind("plant", "tree", ("fir tree",), outdoors.tree),
    "cactus": Kind("plant", "cactus in a pot", ("potted cactus",), outdoors.cactus),
    "flower": Kind("plant", "flower", ("daisy",), outdoors.flower),
    "mug": Kind("tool", "mug", ("cup", "coffee mug"), home.mug),
    "teapot": Kind("tool", "teapot", ("tea kettle",), home.teapot),
    "umbrella": Kind("tool", "umbrella", (), home.umbrella),
    "robot": Kind("toy", "robot", (), toys.robot),
    "snowman": Kind("toy", "snowman", (), toys.snowman),
    "teddy_bear": Kind("toy", "teddy bear", ("stuffed bear",), toys.teddy_bear),
}

KIND_NAMES: tuple[str, ...] = tuple(KINDS)
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checked")

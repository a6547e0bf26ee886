"""Nouns for captions: the catalogue's English names without brands, jargon and mistakes.

Models that make no useful picture are left out here too: electrical fittings and road markings
are flat, windows are mostly holes, and banknotes are not ours to print.
"""

from __future__ import annotations

import re

from scenes.objects.catalog import Entry

__all__ = ["is_plural", "left_out", "noun_of"]

_FLAT = re.compile(
    r"\b(plug|switch|double socket|wall socket|parking|arrow|window|rails|crossing|sidewalk)\b"
    r"|\bbill\b",
    re.IGNORECASE,
)
_FOREIGN_TEXTURES = {"BlendSwap-CC-0/couch", "BlendSwap-CC-0/showerStall"}
"""Their authors name image sites whose terms the package does not state."""

BY_KEY: dict[str, str] = {
    "BlendSwap-CC-0/motorbike": "spring rider",
    "BlendSwap-CC-0/plant": "potted plant",
    "BlendSwap-CC-BY/boiler": "kettle",
    "KatorLegaz/MIDI-keyboard": "music keyboard",
    "Scopia/chaussette": "sock",
    "Scopia/bamboo": "bamboo plant",
    "Scopia/shovel": "dustpan",
    "Scopia/wood_bank": "wooden bench",
    "Scopia/littlebank": "stone bench",
    "Scopia/peugeot-308": "convertible car",
    "Scopia/chevrolet": "sports car",
    "BlendSwap-CC-BY/carrito-de-madera": "toy car",
    "Scopia/glasses": "eyeglasses",
}
BY_NAME: dict[str, str] = {
    **dict.fromkeys(("ford focus", "seat leon", "renault scenic", "smart car", "suv"), "car"),
    **dict.fromkeys(("concept sedan 01", "concept sedan 02", "concept sedan 02 sport"), "car"),
    **dict.fromkeys(("apple imac 1998", "apple imac 2004"), "computer"),
    **dict.fromkeys(("frame chambord", "frame hôi an"), "picture frame"),
    **dict.fromkeys(("oak chair", "teck chair"), "wooden chair"),
    **dict.fromkeys(("wooden alder table", "wooden teak table", "oak table"), "wooden table"),
    **dict.fromkeys(("entry speech unit", "intercom with screen"), "intercom"),
    **dict.fromkeys(("mp3 station", "mp3 base"), "music player"),
    **dict.fromkeys(("japanese maple", "sycamore maple"), "maple tree"),
    **dict.fromkeys(("fridge", "large fridge"), "refrigerator"),
    **dict.fromkeys(("couch", "sofa 2 seats", "sofa 3 seats", "clear sofa", "burlap sofa"), "sofa"),
    **dict.fromkeys(("bath", "island bath"), "bathtub"),
    **dict.fromkeys(("stone lantern", "japanese lantern"), "japanese lantern"),
    "acacia": "acacia tree",
    "air conditioning - external unit": "air conditioner",
    "air conditioning - internal unit": "air conditioner",
    "apple ibook": "laptop",
    "apple iphone": "smartphone",
    "armchair ottoman": "ottoman",
    "barnum": "party tent",
    "bended coconut tree": "bent coconut tree",
    "bike": "bicycle",
    "black table": "table",
    "blue pine under snow": "pine tree under snow",
    "bread": "loaf of bread",
    "card game": "playing cards",
    "cctv": "surveillance camera",
    "children chair": "child chair",
    "children game": "playground slide",
    "children table": "child table",
    "clothes washing machine": "washing machine",
    "contemporary living room": "wall unit",
    "convertible sofa bz": "sofa bed",
    "copper beech": "beech tree",
    "cosmetics pot": "cosmetics jar",
    "cup cake": "cupcake",
    "cypress": "cypress tree",
    "drill": "electric drill",
    "entry bell ring": "doorbell",
    "extinguisher": "fire extinguisher",
    "female": "woman",
    "ficus": "ficus tree",
    "flacon": "perfume bottle",
    "flipper": "pinball machine",
    "flowers": "vase of flowers",
    "fork lift": "forklift",
    "gaz water heater": "gas water heater",
    "gift": "gift box",
    "glass": "drinking glass",
    "grinder": "angle grinder",
    "hashtray": "ashtray",
    "holding female": "standing woman",
    "holding male": "standing man",
    "hood": "kitchen hood",
    "indoor bike": "exercise bike",
    "island": "kitchen island",
    "jacuzzi": "hot tub",
    "joystick": "game controller",
    "letters box": "mailbox",
    "lip stick": "lipstick",
    "little lamp": "small lamp",
    "little plant": "small plant",
    "lying down boy": "lying boy",
    "lying down female": "lying woman",
    "lying down male": "lying man",
    "male": "man",
    "mannequin female": "female mannequin",
    "mannequin male": "male mannequin",
    "milk": "milk carton",
    "mixer": "stand mixer",
    "mocassin": "moccasin",
    "modern armchair": "armchair",
    "mower": "lawn mower",
    "opened convertible sofa bz": "sofa bed",
    "osaka chair": "chair",
    "peach blossom": "peach tree in blossom",
    "penbox": "pen box",
    "phone": "telephone",
    "pine": "pine tree",
    "pine under snow": "pine tree under snow",
    "plant": "potted plant",
    "plate, glass and cutlery": "plate with cutlery",
    "plate, glasses and cutlery": "plate with cutlery",
    "playstation": "game console",
    "poplar": "poplar tree",
    "puff": "pouf",
    "rectangle swimming pool": "inflatable pool",
    "rigged fan": "fan",
    "round swimming pool": "inflatable pool",
    "rubik's cube": "puzzle cube",
    "screen": "folding screen",
    "short": "shorts",
    "sitting female": "sitting woman",
    "sitting male": "sitting man",
    "soap": "bar of soap",
    "spathiphyllum": "peace lily",
    "table tennis": "table tennis table",
    "tape": "roll of tape",
    "text marker": "marker pen",
    "toilets unit": "toilet",
    "tool": "kitchen tool",
    "trunck": "trunk",
    "tv 16:9": "tv",
    "vw new beetle": "beetle car",
    "white board": "whiteboard",
    "winchester armchair": "leather armchair",
    "winchester sofa": "leather sofa",
    "wood bank": "wooden bench",
    "wood toy": "wooden toy",
    "yamaha yzr r6": "motorcycle",
    "yucca": "yucca plant",
}
SINGULAR = re.compile(r"(?:ss|us|chess|tennis|lotus)$")
PLURAL_PHRASES = ("set of", "pair of", "roll of", "loaf of", "bar of", "vase of")


def left_out(entry: Entry) -> str:
    """Why a model is not in the pack, or the empty string."""
    if _FLAT.search(entry.name):
        return "no useful picture"
    if f"{entry.library}/{entry.key}" in _FOREIGN_TEXTURES:
        return "textures from a site whose terms are not stated"
    return ""


def noun_of(entry: Entry) -> str:
    """The noun phrase of a model, lower case, such as "game controller"."""
    name = entry.name.lower()
    return BY_KEY.get(f"{entry.library}/{entry.key}", BY_NAME.get(name, name))


def is_plural(noun: str) -> bool:
    """Whether the noun takes no article, as "sneakers" do."""
    if any(noun.startswith(phrase) for phrase in PLURAL_PHRASES):
        return False
    head = re.split(r" with | on | in | under | and ", noun)[0]
    return head.endswith("s") and not SINGULAR.search(head)

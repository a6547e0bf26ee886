"""Read access to the pack of real objects: shapes, captions, splits, authors.

The pack is a ZIP whose members are single objects (``scenes/objects/codec.py``), beside
``captions.json`` with everything else. Objects are read one by one and kept; nothing is unpickled.

    pack = default_pack()
    pack.names("train")
    mesh = pack.load("dog")                 # or load_object("dog")
    pack.info("dog").caption                # "a brown dog"
"""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
import zipfile
from collections import OrderedDict
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from scenes.objects.captions import plain_caption
from scenes.objects.codec import decode
from scenes.objects.errors import BrokenSource, UnknownObject
from scenes.objects.mesh import ObjectMesh
from scenes.objects.splits import Split

__all__ = [
    "CAPTIONS_FILE",
    "DATA",
    "PACK_FILE",
    "ObjectInfo",
    "ObjectPack",
    "default_pack",
    "load_object",
]

DATA = Path(__file__).parent / "data"
PACK_FILE = "objects.zip"
CAPTIONS_FILE = "captions.json"
KEPT = 64


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object besides its shape."""

    name: str
    """Its name in the pack, such as ``armchair-3``."""
    noun: str
    """Its noun phrase without brands."""
    colors: tuple[str, ...]
    """One or two colour words, none where no colour prevails."""
    color_shares: dict[str, float]
    """Share of each colour word among the visible points."""
    recolor: tuple[int, ...]
    """Materials that carry the main colour and may be painted, none for living things."""
    category: str
    """One of the source's twelve categories."""
    tags: tuple[str, ...]
    """Search words of the source."""
    split: Split
    """Which side of the fixed split it is on."""
    size_cm: tuple[float, float, float]
    """True width, depth and height."""
    faces: int
    """Triangles in the pack."""
    source: str
    """Library and id of the model it was made from."""
    source_name: str
    """Its name there."""
    author: str
    """Who made the model."""
    licence: str
    """"CC0 1.0", "CC BY 3.0" or "CC BY 3.0 US"."""

    @property
    def caption(self) -> str:
        """The canonical caption, such as "a red armchair"."""
        return plain_caption(self.noun, self.colors)


class ObjectPack:
    """An opened pack; safe to use from several threads."""

    def __init__(self, folder: Path = DATA, *, kept: int = KEPT) -> None:
        """Read the captions; shapes are read when they are asked for.

        Args:
            folder: of the pack.
            kept: objects kept decoded, with their normals once these are used. A process that keeps
                all 639 of the training split takes 510 MB.

        Raises:
            BrokenSource: the folder does not hold a pack.
        """
        hint = "Restore scenes/objects/data, or run python -m scenes.objects.build."
        try:
            table = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))["objects"]
            self._zip = zipfile.ZipFile(folder / PACK_FILE)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BrokenSource(f"{folder} holds no object pack ({error}). {hint}") from error
        self._infos = {row["name"]: _info(row) for row in table}
        self._kept: OrderedDict[str, ObjectMesh] = OrderedDict()
        self._capacity = kept
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """Which pack it is: 16 hexadecimal digits of its captions and its members' checksums."""
        members = [(member.filename, member.CRC) for member in self._zip.infolist()]
        told = {name: asdict(info) for name, info in self._infos.items()}
        return hashlib.sha256(json.dumps([members, told]).encode()).hexdigest()[:16]

    def names(self, split: Split | None = None) -> list[str]:
        """All names in order, or those of one split."""
        return [n for n, info in self._infos.items() if split is None or info.split == split]

    def info(self, name: str) -> ObjectInfo:
        """What is known of an object.

        Raises:
            UnknownObject: there is none of this name.
        """
        if name not in self._infos:
            near = difflib.get_close_matches(name, self._infos, 3, 0.5)
            raise UnknownObject(
                f"The object pack has no {name!r}, expected one of its {len(self._infos)} names"
                f"{' such as ' + ', '.join(near) if near else ''}. "
                "scenes/objects/data/captions.json lists them."
            )
        return self._infos[name]

    def load(self, name: str) -> ObjectMesh:
        """The shape and colours of an object.

        Raises:
            UnknownObject: there is none of this name.
            BrokenSource: the pack is damaged.
        """
        self.info(name)
        with self._lock:
            if name not in self._kept:
                try:
                    data = self._zip.read(name)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise BrokenSource(
                        f"The object pack is damaged at {name!r}: {error}. Restore "
                        "scenes/objects/data, or run python -m scenes.objects.build."
                    ) from error
                self._kept[name] = decode(name, data)
            self._kept.move_to_end(name)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            return self._kept[name]


def _info(row: dict) -> ObjectInfo:
    lists = ("colors", "recolor", "tags", "size_cm")
    return ObjectInfo(**{k: tuple(v) if k in lists else v for k, v in row.items()})


@cache
def default_pack() -> ObjectPack:
    """The pack that ships with the project, opened once."""
    return ObjectPack()


def load_object(name: str) -> ObjectMesh:
    """An object of the shipped pack; see :class:`ObjectMesh` for its conventions."""
    return default_pack().load(name)

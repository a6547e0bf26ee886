"""Contact sheets of a subject for the report: photos, samples, renders beside pseudo views."""

from __future__ import annotations

from renderers.cameras import Cameras
from studio.configs import SceneConfig
from studio.contact_sheet import contact_sheet, shown_at, view_names
from studio.previews import save_png
from studio.subject.folder import SubjectFolder, read_images
from studio.subject.samples import COLUMNS

__all__ = ["write_photo_sheet", "write_sample_sheet", "write_view_sheet"]

SHOWN_SIZE = 128  # pixels
MAX_PHOTOS, MAX_VIEWS = 8, 8
WEIGHTS = ("partial", "full", "multiview")


def write_photo_sheet(folder: SubjectFolder) -> None:
    """The photos as they are used."""
    photos = shown_at(read_images(folder.photos)[:MAX_PHOTOS], SHOWN_SIZE)
    names = [""] * len(photos)
    save_png(folder.sheets / "photos.png", contact_sheet([photos], rows=[""], columns=names))


def write_sample_sheet(folder: SubjectFolder, scene: SceneConfig) -> None:
    """What each of the weights draws."""
    names = [name for name in WEIGHTS if (folder.samples / name).is_dir()]
    rows = [shown_at(read_images(folder.samples / name), SHOWN_SIZE) for name in names]
    title = scene.subject.caption()
    sheet = contact_sheet(rows, rows=names, columns=COLUMNS, title=title)
    save_png(folder.sheets / "samples.png", sheet)


def write_view_sheet(folder: SubjectFolder, cameras: Cameras) -> None:
    """Renders above the pseudo views made of them."""
    step = max(1, len(cameras) // MAX_VIEWS)
    rows = [
        shown_at(read_images(folder.views(kind))[::step], SHOWN_SIZE)
        for kind in ("renders", "pseudo")
    ]
    names = view_names(cameras.azimuth_deg[::step])
    sheet = contact_sheet(rows, rows=["render", "pseudo view"], columns=names)
    save_png(folder.sheets / "views.png", sheet)

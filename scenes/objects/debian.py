"""The furniture libraries inside the Debian package ``sweethome3d-furniture``.

A .deb is an ``ar`` archive that holds a tar of the installed files; the libraries in it are ZIP
files (``*.sh3f``). Everything is read in memory and nothing is executed or installed.

    libraries = read_libraries(Path("sweethome3d-furniture_1.8-1_all.deb"))
    libraries["Scopia"].namelist()
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from scenes.objects.errors import BrokenSource

__all__ = ["PACKAGE", "ar_members", "download_package", "read_libraries"]

PACKAGE = "sweethome3d-furniture"
AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
LIBRARY_SUFFIX = ".sh3f"


def download_package(folder: Path) -> Path:
    """Let apt fetch the package into ``folder`` (120 MB), and return the file.

    Raises:
        BrokenSource: there is no apt on this machine, or it could not fetch the package.
    """
    hint = f"Fetch {PACKAGE} elsewhere and give its .deb file with --deb."
    if shutil.which("apt-get") is None:
        raise BrokenSource(f"apt-get is not installed, expected a Debian-like machine. {hint}")
    result = subprocess.run(
        ["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False
    )
    found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if result.returncode or not found:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BrokenSource(f"apt-get could not download {PACKAGE}: {reason}. {hint}")
    return found[-1]


def ar_members(data: bytes) -> dict[str, bytes]:
    """Name to content of the members of an ``ar`` archive, in order.

    Raises:
        BrokenSource: the bytes are no archive, or end early.
    """
    if not data.startswith(AR_MAGIC):
        raise BrokenSource(
            f"The package starts with {data[:8]!r}, expected {AR_MAGIC!r}. Give a whole .deb file."
        )
    members, at = {}, len(AR_MAGIC)
    while at < len(data):
        header = data[at : at + AR_HEADER]
        digits = header[48:58].strip()
        size = int(digits) if digits.isdigit() else -1
        start = at + AR_HEADER
        if size < 0 or start + size > len(data):
            raise BrokenSource(
                f"The package ends inside a member at byte {at}, expected {size} bytes more. "
                "Download it again."
            )
        members[header[:16].decode("ascii").strip().rstrip("/")] = data[start : start + size]
        at = start + size + size % 2
    return members


def read_libraries(deb: Path) -> dict[str, zipfile.ZipFile]:
    """The libraries by name, such as ``Scopia``, in alphabetical order.

    Raises:
        BrokenSource: the file is absent, is no Debian package, or holds no libraries.
    """
    if not deb.is_file():
        raise BrokenSource(f"There is no file {deb}, expected the .deb of {PACKAGE}.")
    members = ar_members(deb.read_bytes())
    archives = [data for name, data in members.items() if name.startswith("data.tar")]
    if not archives:
        raise BrokenSource(f"{deb} has no data.tar member, expected a Debian package.")
    libraries = {}
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == LIBRARY_SUFFIX:
                content = tar.extractfile(member).read()
                libraries[path.stem] = zipfile.ZipFile(io.BytesIO(content))
    if not libraries:
        raise BrokenSource(f"{deb} holds no {LIBRARY_SUFFIX} files, expected those of {PACKAGE}.")
    return dict(sorted(libraries.items()))

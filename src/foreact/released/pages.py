"""Web pages that a host sends in place of a file, and the way past those that only ask back.

Google Drive does not scan large files for viruses; it sends a page with a form, or in older times a
link, by which one says that one wants the file all the same.
"""

from __future__ import annotations

import http.client
import urllib.parse
from html.parser import HTMLParser


def is_page(response: http.client.HTTPResponse) -> bool:
    """Whether a server announces a web page; no released file is one."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip() == "text/html"


def confirmed_address(page: bytes, url: str) -> str | None:
    """The address that a page's form or link for going on leads to.

    Args:
        page: as received.
        url: where it came from.

    Returns:
        The address, or None where the page asks for no confirmation.
    """
    reader = _read(page)
    if "confirm" in reader.fields:
        query = urllib.parse.urlencode(reader.fields)
        address = urllib.parse.urljoin(url, reader.action)
        return f"{address}{'&' if '?' in address else '?'}{query}"
    return None if reader.link is None else urllib.parse.urljoin(url, reader.link)


def page_title(page: bytes) -> str:
    """Title of a page for a sentence, " ('...')"; empty where it has none."""
    title = " ".join(_read(page).title.split())
    return f" ('{title[:80]}')" if title else ""


class _Reader(HTMLParser):
    """Collects the title, the form with a field `confirm`, and the link with such a query.

    Attributes:
        action: where the form is sent.
        fields: name -> value of its inputs; those of the form before are dropped.
        link: target of the link, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.title, self.action = "", ""
        self.link: str | None = None
        self.fields: dict[str, str] = {}
        self._in_title = self._in_form = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_title = tag == "title"
        if tag == "form" and "confirm" not in self.fields:
            self.action, self.fields, self._in_form = values.get("action", ""), {}, True
        elif tag == "input" and self._in_form and values.get("name"):
            self.fields[values["name"]] = values.get("value", "")
        elif tag == "a" and "confirm=" in urllib.parse.urlsplit(values.get("href", "")).query:
            self.link = values["href"]

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        self._in_form = self._in_form and tag != "form"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def _read(page: bytes) -> _Reader:
    reader = _Reader()
    reader.feed(page.decode("utf-8", errors="replace"))
    return reader

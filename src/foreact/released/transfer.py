"""One file over HTTP: resumed, retried and checked before it gets its name."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreact.checkpoints.manifest import SHA256, FileFacts, sha256_of
from foreact.errors import UserError
from foreact.files import decode_text
from foreact.released.pages import confirmed_address, is_page, page_title

READ = 2**16
LONGEST_WAIT = 60.0
LARGEST_TEXT = 2**22
MISSING = {404, 410}
BUSY = {408, 425, 429, 500, 502, 503, 504}


class MissingFileError(UserError):
    """The server answers, and has no such file."""


class BrokenTransferError(Exception):
    """A transfer error worth retrying; `wait` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, wait: int | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class WrongFileError(UserError):
    """What the server has is not what is wanted; what was received of it is worthless."""


class RangeRefusedError(BrokenTransferError):
    """The server cannot go on from where the last try stopped."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """An HTTP client and its patience.

    Attributes:
        timeout: seconds without a byte after which a connection counts as broken.
        attempts: tries in a row that bring no new byte before giving up.
        sleep: how to wait between tries.
    """

    timeout: float = 30.0
    attempts: int = 6
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.attempts < 1:
            raise UserError(
                f"A timeout above 0 and 1 try or more are needed, found {self.timeout} and "
                f"{self.attempts}."
            )

    def size(self, url: str) -> int | None:
        """Bytes of the file as its server announces them, or None where it does not say.

        Raises:
            MissingFileError: there is no such file.
            UserError: the server fails for too long.
        """

        def ask(method: str) -> int | None:
            with self._open(url, method=method) as response:
                if method == "HEAD" and is_page(response):
                    raise BrokenTransferError("a page was announced")
                return _content_length(response)

        try:
            return ask("HEAD")
        except (BrokenTransferError, UserError):
            # Not every server knows HEAD; the head of a GET says the same.
            return self.patiently(lambda: ask("GET"), url)

    def text(self, url: str) -> str:
        """A small text file.

        Raises:
            UserError: it is missing, too large or no text.
        """

        def read() -> bytes:
            with self._open(url) as response:
                return b"".join(_received(response, limit=LARGEST_TEXT))

        try:
            return decode_text(self.patiently(read, url))
        except UnicodeDecodeError:
            raise UserError(f"{url} is no text.") from None

    def download(
        self,
        url: str,
        target: Path,
        known: FileFacts | None = None,
        at: Callable[[int], object] = lambda count: None,
    ) -> FileFacts:
        """Bring one file to `target`, going on from `target`.part where an earlier try broke off.

        Args:
            url: its address, http or https.
            target: the name it gets once it is complete and checked.
            known: what it should be. Without it, the length that the server announces is what is
                checked, and the hash where the server's ETag is one.
            at: told the bytes received so far.

        Raises:
            MissingFileError: there is no such file.
            UserError: it is not what it should be, or the server fails for too long.
        """
        part = Partial(target)
        if part.about.get("url") != url:
            part.discard()
        try:
            self.patiently(
                lambda: self._go_on(url, part, known, at), target.name, lambda: part.size
            )
            facts = FileFacts(sha256=sha256_of(part.path), bytes=part.size, url=url)
            expected = known.sha256 if known is not None else part.about.get("sha256")
            if expected is not None and facts.sha256 != expected:
                source = "the checksums say" if known is not None else "its server says"
                raise WrongFileError(
                    f"{url} brought a file with SHA-256 {facts.sha256}, where {source} "
                    f"{expected}; it was thrown away: run the command again, and if that ends the "
                    "same, the server holds another file."
                )
        except WrongFileError:
            part.discard()
            raise
        part.finish()
        return facts

    def patiently(
        self, action: Callable[[], Any], what: str, progress: Callable[[], int] = lambda: 0
    ) -> Any:
        """Retry `action` on `BrokenTransferError`, waiting longer while `progress` stalls."""
        best, failures = progress(), 0
        while True:
            try:
                return action()
            except BrokenTransferError as error:
                failures = 1 if progress() > best else failures + 1
                best = max(best, progress())
                if failures >= self.attempts:
                    raise UserError(
                        f"{what} could not be received in {failures} tries ({error}); run the "
                        "same command again later, it goes on from where it stopped."
                    ) from None
                self.sleep(
                    min(
                        LONGEST_WAIT,
                        error.wait if error.wait is not None else 2.0 ** (failures - 1),
                    )
                )

    def _go_on(
        self, url: str, part: Partial, known: FileFacts | None, at: Callable[[int], object]
    ) -> None:
        """One request; returns when the file is complete."""
        begun, about = part.size, part.about
        if begun and begun == about.get("total"):
            at(begun)
            return
        headers = {}
        if begun:
            headers["Range"] = f"bytes={begun}-"
            if "validator" in about:
                headers["If-Range"] = about["validator"]
        try:
            response = self._open(url, headers)
        except RangeRefusedError:
            part.discard()
            raise
        with response:
            total = _content_length(response)
            if response.status == 206:
                start, total = _content_range(response)
                total = about.get("total") if total is None else total
                if (
                    start != begun
                    or total != about.get("total", total)
                    or _changed(response, about)
                ):
                    part.discard()
                    raise BrokenTransferError(
                        "the file changed on the server or another range was sent than asked for"
                    )
            else:
                begun = 0  # the whole file: it is new, has changed, or the server knows no ranges
            if known is not None and None not in (total, known.bytes) and total != known.bytes:
                raise WrongFileError(
                    f"{url} announces {total:,} bytes where the checksums say {known.bytes:,}; "
                    "the server holds another file."
                )
            if not begun:
                part.discard()
                part.remember(url, total, response)
            at(begun)
            with open(part.path, "ab") as file:
                for data in _received(response):
                    begun += file.write(data)
                    at(begun)
                file.flush()
                os.fsync(file.fileno())
            chunked = bool(getattr(response, "chunked", False))
        if total is None and known is None and not chunked:
            raise WrongFileError(
                f"{url} came without a length, so nobody can tell whether it is "
                "whole; pass --sha256."
            )
        if total is not None and begun > total:
            part.discard()
            raise BrokenTransferError(f"{begun:,} bytes came where {total:,} were announced")
        if total is not None and begun < total:
            raise BrokenTransferError(f"the connection closed after {begun:,} of {total:,} bytes")

    def _open(
        self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> http.client.HTTPResponse:
        _require_http(url)
        opener = urllib.request.build_opener(_Redirects, urllib.request.HTTPCookieProcessor())

        def ask(address: str) -> http.client.HTTPResponse:
            sent = {"Accept-Encoding": "identity", "User-Agent": "foreact", **(headers or {})}
            request = urllib.request.Request(address, headers=sent, method=method)
            return opener.open(request, timeout=self.timeout)

        try:
            response = ask(url)
            if method == "GET" and is_page(response):
                with response:
                    page = response.read(LARGEST_TEXT)
                    further = confirmed_address(page, response.url)
                response = None
                if further is not None:
                    _require_http(further, secure=url.startswith("https:"))
                    response = ask(further)
                if response is None or is_page(response):
                    raise UserError(
                        f"{url} answers with a page{page_title(page)}, not with the file; get it "
                        "in a browser and put it where it is needed."
                    )
            return response
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if "CERTIFICATE" in str(reason):
                raise UserError(f"The certificate of {url} cannot be trusted ({reason}).") from None
            raise BrokenTransferError(f"{url} cannot be reached: {reason}") from None
        except ValueError as error:
            raise UserError(f"'{url}' is no address ({error}); check --base-url.") from None


class Partial:
    """The received beginning of a file, and what its server said about the whole."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def about(self) -> dict[str, Any]:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def remember(self, url: str, total: int | None, response: http.client.HTTPResponse) -> None:
        etag = response.headers.get("ETag", "")
        # A weak ETag promises the same meaning, not the same bytes.
        validator = (
            etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        )
        sha256 = etag.strip('"').lower()
        notes = {
            "url": url,
            "total": total,
            "validator": validator,
            "sha256": sha256 if SHA256.fullmatch(sha256) else None,
        }
        self._notes.write_text(
            json.dumps({k: v for k, v in notes.items() if v is not None}), encoding="utf-8"
        )

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def finish(self) -> None:
        os.replace(self.path, self.target)
        self._notes.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and to http only from http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _require_http(newurl, secure=req.type == "https")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


def _require_http(url: str, secure: bool = False) -> None:
    schemes = ("https",) if secure else ("https", "http")
    if urllib.parse.urlsplit(url).scheme not in schemes:
        raise UserError(
            f"{url} is not an address of {' or '.join(schemes)}, so it is not "
            "followed; check --base-url."
        )


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in MISSING:
        return MissingFileError(
            f"{url} does not exist ({error.code}); check the name and --base-url."
        )
    if error.code == 416:
        return RangeRefusedError("the server refused to go on from where the last try stopped")
    if error.code in BUSY:
        return BrokenTransferError(
            f"the server answered {error.code}", _whole(error.headers.get("Retry-After"))
        )
    reason = str(error.reason).partition("\n")[0]
    return UserError(
        f"{url} is refused by its server ({error.code} {reason}); check --base-url and your access."
    )


def _received(response: http.client.HTTPResponse, limit: int | None = None) -> Iterator[bytes]:
    count = 0
    while True:
        try:
            data = response.read1(READ)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenTransferError(
                f"the connection broke: {error or type(error).__name__}"
            ) from None
        if not data:
            return
        count += len(data)
        if limit is not None and count > limit:
            raise UserError(
                f"{response.url} has more than {limit:,} bytes, which is no list of checksums."
            )
        yield data


def _content_length(response: http.client.HTTPResponse) -> int | None:
    return _whole(response.headers.get("Content-Length"))


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """First byte and total of "bytes FIRST-LAST/TOTAL"; None for what it does not say."""
    match = re.fullmatch(r"bytes (.+)-.+/(.+)", response.headers.get("Content-Range", ""))
    return (None, None) if match is None else (_whole(match[1]), _whole(match[2]))


def _whole(text: str | None) -> int | None:
    """The whole number that a header gives, or None where it gives none that can be meant."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _changed(response: http.client.HTTPResponse, about: Mapping[str, Any]) -> bool:
    """Whether a 206 answer names another version of the file than the one that was begun."""
    etag = response.headers.get("ETag")
    return (
        etag is not None
        and about.get("validator", "").startswith('"')
        and etag != about["validator"]
    )

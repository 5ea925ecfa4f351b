"""The files of the live page, read once, with the headers that keep it to itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

FOLDER = Path(__file__).parent.parent / "data" / "dashboard"

PAGE = "index.html"

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    # Nothing from elsewhere, nothing inline, in no other page's frame.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    kind: str
    tag: str


class DashboardAssets:
    """The page and what it consists of, by file name."""

    def __init__(self) -> None:
        self._assets = {
            path.name: _asset(path) for path in FOLDER.iterdir() if path.suffix in KINDS
        }

    def answer(self, name: str, headers: Headers) -> Response | None:
        """The answer with a file, or that the browser's copy is still right; None: no such file.

        Args:
            name: Of the file.
            headers: Of the request.
        """
        asset = self._assets.get(name)
        if asset is None:
            return None
        told = {**HEADERS, "etag": asset.tag}
        if headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=told)
        return Response(asset.content, headers=told, media_type=asset.kind)


def _asset(path: Path) -> _Asset:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return _Asset(content, KINDS[path.suffix], tag)

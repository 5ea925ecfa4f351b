"""A server that speaks as much of S3 as pyarrow needs, and that can be away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

DROPPED = "dropped"
"""In place of a status: the connection ends without an answer."""


@dataclass(slots=True)
class ObjectStore:
    """What the server holds and how it answers.

    Attributes:
        address: `HOST:PORT`.
        objects: Contents by path, bucket included.
        uploads: Parts of the uploads that were begun, by upload and number.
        trouble: A status or `DROPPED` for each of the next requests; then it answers again.
        refused: Requests that got trouble.
    """

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    trouble: list[int | str] = field(default_factory=list)
    refused: int = 0


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store with nothing in it, on a free port of this machine."""
    store = ObjectStore()

    class Handler(_Handler):
        holds = store

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    holds: ObjectStore
    protocol_version = "HTTP/1.1"  # with 1.0 the client waits a second for leave to send
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        if self.holds.trouble:
            self.holds.refused += 1
            self._refuse(self.holds.trouble.pop(0))
        else:
            getattr(self, f"_{self.command.lower()}")(url.path.strip("/"), asked, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _put(self, path: str, asked: dict[str, str], body: bytes) -> None:
        if "partNumber" in asked:
            self.holds.uploads[asked["uploadId"]][int(asked["partNumber"])] = body
        else:
            self.holds.objects[path] = body
        self._answer()

    def _post(self, path: str, asked: dict[str, str], body: bytes) -> None:
        if "uploads" in asked:
            upload = str(len(self.holds.uploads))
            self.holds.uploads[upload] = {}
            named = f"<UploadId>{upload}</UploadId>"
            self._answer(f"<InitiateMultipartUploadResult>{named}</InitiateMultipartUploadResult>")
            return
        parts = self.holds.uploads[asked["uploadId"]]
        self.holds.objects[path] = b"".join(parts[number] for number in sorted(parts))
        self._answer(
            '<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'
        )

    def _get(self, path: str, asked: dict[str, str], body: bytes) -> None:
        if "list-type" in asked:
            self._list(path, asked.get("prefix", ""))
        elif path not in self.holds.objects:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            asked_bytes = self.headers.get("range", "bytes=0-").removeprefix("bytes=")
            first, _, last = asked_bytes.partition("-")
            self._answer(self.holds.objects[path][int(first) : int(last) + 1 if last else None])

    def _head(self, path: str, asked: dict[str, str], body: bytes) -> None:
        if path not in self.holds.objects:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            self._answer(self.holds.objects[path])

    def _delete(self, path: str, asked: dict[str, str], body: bytes) -> None:
        self.holds.objects.pop(path, None)
        self._answer()

    def _list(self, bucket: str, prefix: str) -> None:
        """What lies at `prefix`, one level deep."""
        start = f"{bucket}/{prefix}"
        below = [path.removeprefix(start) for path in self.holds.objects if path.startswith(start)]
        found = [
            f"<Contents><Key>{escape(prefix + name)}</Key><Size>1</Size>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for name in sorted(below)
            if "/" not in name
        ]
        folders = {name.partition("/")[0] for name in below if "/" in name}
        found += [
            f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>"
            for name in sorted(folders)
        ]
        self._answer(f"<ListBucketResult>{''.join(found)}</ListBucketResult>")

    def _refuse(self, trouble: int | str) -> None:
        if trouble == DROPPED:
            self.close_connection = True
            return
        name = HTTPStatus(int(trouble)).phrase.replace(" ", "")
        self._answer(f"<Error><Code>{name}</Code></Error>", int(trouble))

    def _answer(self, content: bytes | str = b"", status: int = HTTPStatus.OK) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is for verdicts."""

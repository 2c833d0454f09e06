"""`normbench serve`: the page of results over HTTP while runs go on; read-only, on this machine.

Nothing of a request names a file: there are two addresses, the page and the progress. The page is
made anew when a record has changed, in the background; browsers ask for the progress by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.live import statuses
from harness.report.definition import TableDefinition, Words

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_IDLE_S = 10.0
"""How long a connection may say nothing."""


class Site:
    """What is served.

    Args:
        results: the results folder, which need not exist yet.
        tables: to show.
        words: as ``definition.choose`` returned them.
        asked: whether the user named the tables; of others only those with a number are shown.
    """

    def __init__(
        self, results: Path, tables: Sequence[TableDefinition], words: Words, *, asked: bool
    ) -> None:
        self.results, self.tables, self.words, self.asked = results, tables, words, asked
        self._building = threading.Lock()
        self._page = b""
        self._of = ""
        self._shares: list[dict[str, Any]] = []

    def page(self) -> bytes:
        """Return the page; the newest that is made, while a newer one is being made."""
        if not self._page:
            with self._building:
                if not self._page:
                    self._build()
        self._refresh()
        return self._page

    def progress(self) -> bytes:
        """Return the states of all runs as JSON; ``page`` in it changes with the page."""
        self._refresh()
        found = list(statuses(self.results))
        counts: dict[str, int] = {}
        for one in found:
            counts[one.state] = counts.get(one.state, 0) + 1
        busy = [_plain(asdict(one)) for one in found if one.state not in ("done", "todo")]
        shown = {"page": self._of, "counts": counts, "tables": self._shares, "runs": busy}
        return json.dumps(shown, allow_nan=False).encode()

    def _refresh(self) -> None:
        """Start making the page anew if it is old and nobody does."""
        if self._page and self._of != self._version() and self._building.acquire(blocking=False):
            threading.Thread(target=self._build_and_release, daemon=True).start()

    def _build_and_release(self) -> None:
        try:
            self._build()
        finally:
            self._building.release()

    def _version(self) -> str:
        """Return what changes when the page would."""
        found = sorted(self._seen())
        return hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest()

    def _seen(self) -> Iterator[tuple[str, int, int]]:
        for pattern in ("*/record.json", "*/failure.json"):
            for path in (self.results / "runs").glob(pattern):
                try:
                    found = path.stat()
                except OSError:
                    continue
                yield f"{path.parent.name}/{path.name}", found.st_mtime_ns, found.st_size

    def _build(self) -> None:
        from harness.collect import metrics_frame, read_records
        from harness.report.build import build_table
        from harness.report.html.page import page

        version = self._version()
        records, warnings = read_records(self.results)
        frame = metrics_frame(records)
        built = [build_table(table, self.words, self.results, frame) for table in self.tables]
        shown = [table for table in built if self.asked or table.num_done]
        text = page(self.results, records, warnings, shown, live=version)
        self._shares = [
            {"name": one.definition.name, "done": one.num_done, "total": one.num_runs}
            for one in shown
        ]
        self._page, self._of = text.encode(), version


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON has no word for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of two addresses."""

    server_version, sys_version = "normbench", ""
    timeout = _IDLE_S

    def __init__(self, site: Site, hosts: frozenset[str], *arguments: Any) -> None:
        self.site, self.hosts = site, hosts
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with the page, the progress, or an error."""
        name = self.headers.get("Host", "").rpartition("]")[2]
        host = self.headers.get("Host", "").removesuffix(name) + name.partition(":")[0]
        # A page elsewhere could make its own name mean this machine, and then read the answer.
        if self.hosts and host.strip("[]") not in self.hosts:
            return self._send(HTTPStatus.FORBIDDEN, b"another host was asked for\n", "text/plain")
        match self.path.partition("?")[0]:
            case "/":
                return self._send(HTTPStatus.OK, self.site.page(), "text/html")
            case "/progress.json":
                return self._send(HTTPStatus.OK, self.site.progress(), "application/json")
        return self._send(HTTPStatus.NOT_FOUND, b"there is only /\n", "text/plain")

    def do_HEAD(self) -> None:
        """Answer as to GET, without a body."""
        self.do_GET()

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: every browser asks every two seconds."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing of a browser that went away; what else fails closes the connection."""


def server(site: Site, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server that listens and is to be told ``serve_forever``.

    Args:
        site: what to serve.
        host: address of this machine to listen at.
        port: 0 for any that is free.

    Raises:
        UsageError: if the address cannot be listened at.
    """
    hosts = frozenset(LOOPBACK) if host in LOOPBACK else frozenset[str]()
    try:
        return _Server((host, port), partial(_Handler, site, hosts))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen at {host}, port {port} ({error}): give another --port (0: any free one)"
        ) from None


def serve(site: Site, host: str, port: int, say: Callable[[str], object]) -> None:
    """Serve until interrupted.

    Raises:
        UsageError: if the address cannot be listened at.
    """
    with server(site, host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.server_port}/  (Ctrl-C ends it)")
        if host not in LOOPBACK:
            say("everybody who reaches this address can read the results")
        listening.serve_forever()

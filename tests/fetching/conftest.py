"""A web server on this machine that can break off, refuse ranges, or serve something else."""

import contextlib
import http.server
import threading
from dataclasses import dataclass, field

import pytest


@dataclass
class Mirror:
    """What the server serves, what it was asked for, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent before each of the next replies ends
    url: str = ""


def _handler(mirror: Mirror) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            mirror.asked.append((self.path, wanted))
            body = mirror.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and mirror.ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if wanted and mirror.ranges else 200)
            if wanted and mirror.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            part = body[start:]
            if mirror.break_after:
                part = part[: mirror.break_after.pop(0)]
            with contextlib.suppress(ConnectionError):  # a reader may hang up early
                self.wfile.write(part)

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def mirror():
    served = Mirror()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()

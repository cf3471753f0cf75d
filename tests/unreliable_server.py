"""A local HTTP server with the faults that real ones have."""

import contextlib
import http.server
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator


class Served:
    """What one path of the server does; `requests` are the ranges that were asked for."""

    def __init__(self, content: bytes, **faults):
        self.content = content
        self.etag = faults.pop("etag", '"first"')
        self.breaks_at: list[int] = faults.pop("breaks_at", [])
        self.ranges: bool = faults.pop("ranges", True)
        self.claims: int | None = faults.pop("claims", None)
        self.statuses: list[int] = faults.pop("statuses", [])
        self.stalls: int = faults.pop("stalls", 0)
        self.pause: float = faults.pop("pause", 0.0)
        assert not faults, faults


class Server:
    """`files` maps paths to what they serve; `asked` has the Range headers of each, in order."""

    def __init__(self, url: str):
        self.url = url
        self.files: dict[str, Served] = {}
        self.asked: dict[str, list[str | None]] = defaultdict(list)

    def serve(self, name: str, content: bytes, **faults) -> Served:
        self.files[f"/{name}"] = Served(content, **faults)
        return self.files[f"/{name}"]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            server.asked[self.path].append(self.headers.get("Range"))
            served = server.files.get(self.path)
            if served is None:
                return self.send_error(404)
            if served.statuses:
                return self.send_error(served.statuses.pop(0))
            self._send(served)

        def _send(self, served: Served):
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", served.etag) == served.etag
            start = int(asked[1]) if asked and served.ranges and same else 0
            size = len(served.content)
            if start and start >= size:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            claimed = served.claims if served.claims is not None else size
            self.send_header("Content-Length", str(claimed - start))
            self.send_header("ETag", served.etag)
            self.end_headers()
            end = served.breaks_at.pop(0) if served.breaks_at else size
            body = served.content[start : max(end, start)]
            step = max(1, len(body) // 8) if served.pause else max(1, len(body))
            for i in range(0, len(body), step):
                self.wfile.write(body[i : i + step])
                self.wfile.flush()
                time.sleep(served.pause)
            if served.stalls:
                served.stalls -= 1
                time.sleep(1.0)

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http_server.server_port}")
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()

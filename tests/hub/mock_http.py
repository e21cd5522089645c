"""The mock hub's way of speaking HTTP: requests in, replies out, and between them the faults that a test asked for.

A route is a function (hub, request, parts of its address) that returns a Reply or raises one (Refused). Faults know nothing of routes:
they look at "METHOD /path?query" as a person reads it and change what is sent.
"""

import json
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

LARGEST_LOGGED_BODY = 1 << 20


@dataclass
class Request:
    """What was asked, as the log keeps it: `token` says whose token it was ("right", "read", "stranger", "wrong", "none", or "xet")."""

    method: str
    target: str  # as sent, with escapes
    headers: dict  # names in lower case; never the token
    token: str
    body: bytes = b""
    status: int = 0  # 0: the connection was closed without an answer
    sent: int = 0  # bytes of the answer's body
    faults: list = field(default_factory=list)
    secret: str = field(default="", repr=False)
    time: float = field(default_factory=time.monotonic, repr=False)  # of its arrival, in seconds

    @property
    def path(self):
        return unquote(urlsplit(self.target).path)

    @property
    def query(self):
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def range(self):
        return self.headers.get("range")

    @property
    def line(self):
        return f"{self.method} {unquote(self.target)}"

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise Refused(400, "the body is no JSON") from None

    def flag(self, name):
        return self.query.get(name, ["false"])[0].lower() in ("1", "true", "")


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    file: bool = False  # a file's bytes: ranges and the faults of downloads apply


class Refused(Exception):
    def __init__(self, status, message, code=None, headers={}):
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = json_reply({"error": message}, status, named | headers)


def json_reply(value, status=200, headers={}):
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"} | headers)


def redirect(status, location, headers={}):
    # The hub's redirects have a body, so their Content-Length is not that of the file.
    text = f"{'Temporary Redirect' if status == 307 else 'Found'}. Redirecting to {location}".encode()
    return Reply(status, text, {"Content-Type": "text/plain; charset=utf-8", "Location": location} | headers)


def file_reply(data, request, headers={}):
    """A file's bytes, or the range of them that was asked for (one range, as clients of the hub ask)."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    etag = headers.get("ETag")
    if etag and request.headers.get("if-none-match", "").removeprefix("W/") in (etag, "*"):
        return Reply(304, b"", headers)
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.range or "")
    if not wanted or wanted[0] == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return Reply(200, data, headers, file=True)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= stop:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, file=True)


@dataclass
class Fault:
    """Something that goes wrong with the requests whose line fits the pattern: `times` of them (None: all) after the first `skip`."""

    kind: str
    pattern: str
    times: object
    skip: int
    settings: dict

    def strikes(self, line):
        if self.times == 0 or not re.search(self.pattern, line):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection of a client. The server that accepted it has the attribute `hub`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes; a kept connection would wait 40 ms for each
    timeout = 30

    def log_message(self, *_):
        pass

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_request(self):
        hub = self.server.hub
        names = {name.lower(): value for name, value in self.headers.items()}
        secret = names.pop("authorization", "").removeprefix("Bearer ")
        request = Request(self.command, self.path, names, hub.whose(secret), self.read_body(), secret=secret)
        with hub.lock:
            hub.log.append(request)
            faults = hub.strike("fail", request) or hub.strike("ignore_range", request)
        if faults and faults.kind == "fail":
            if faults.settings["executed"]:
                self.answer(request)
            reply = faults.settings["reply"]
        else:
            if faults:
                request.headers = {name: value for name, value in names.items() if name != "range"} | {"ignored-range": request.range or ""}
            reply = self.answer(request)
        if len(request.body) > LARGEST_LOGGED_BODY:
            request.body = b""
        if reply is None:
            return self.hang_up()
        self.send(request, reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def answer(self, request):
        hub = self.server.hub
        try:
            return hub.answer(request, self.server.store)
        except Refused as refused:
            return refused.reply
        except Exception as error:  # a defect of this mock, or a request that no client sends: the test is told at its end
            hub.errors.append(error)
            return json_reply({"error": f"Internal Error: {error!r}"}, 500)

    def hang_up(self):
        self.close_connection = True

    def send(self, request, reply):
        hub, body, cut, slow = self.server.hub, reply.body, None, None
        if reply.file and request.method == "GET":
            with hub.lock:
                if fault := hub.strike("corrupt", request):
                    body = fault.settings["change"](body)
                if fault := hub.strike("cut", request):
                    after = fault.settings["after"]
                    cut = hub.random.randrange(len(body)) if after is None and body else min(after or 0, max(len(body) - 1, 0))
                slow = hub.strike("slow", request)
        request.status = reply.status
        self.send_response_only(reply.status)
        headers = {"Content-Length": str(len(body)), "X-Request-Id": f"Root=1-mock-{hub.next_number()}"} | reply.headers
        if reply.status == 304:
            del headers["Content-Length"]
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD" or reply.status == 304:
            return
        piece = slow.settings["piece"] if slow else 1 << 20
        stop = len(body) if cut is None else cut
        try:
            for start in range(0, stop, piece):
                if slow and hub.stopping.wait(slow.settings["pause"]):
                    break
                request.sent = min(start + piece, stop)  # before the client can tell its test that all has come
                self.wfile.write(body[start : request.sent])
        except OSError:  # the client went away, as clients of broken downloads may
            self.hang_up()
        if cut is not None:
            self.hang_up()


def unix_time():
    return int(time.time())

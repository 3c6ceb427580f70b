"""A bucket on this machine: moto's server in a thread, and before it a proxy that spoils some answers."""

import contextlib
import http.client
import itertools
import logging
import random
import threading
import time
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import boto3
    from moto.server import ThreadedMotoServer

FAULTS = ("500", "503", "409", "slow", "reset", "lost")
_numbers = itertools.count()


class Server:
    """Moto's server with a proxy in front of it.

    Attributes
    ----------
    rate : float
        The share of requests that end in a fault.
    faults : sequence of str
        `500`, `503`, `409` (of writes on a condition only), `slow`, `reset` (before the request arrives), `lost` (the
        answer, after the request was carried out).
    struck : Counter
        How often each did.
    requests : list of (method, path, headers)
    answer : (int, str), optional
        A status and the text of an error, which every request gets.
    ignores : sequence of str
        Headers, in small letters, that are taken away before they arrive.
    """

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self._behind = self._moto.get_host_and_port()[1]
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._proxy.daemon_threads = True
        self._proxy.server = self
        self._random = random.Random(0)
        self.slowness = 0.5
        self.reset()
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def reset(self, seed=0):
        self.rate, self.faults, self.struck = 0.0, FAULTS, Counter()
        self.requests, self.ignores, self.answer = [], (), None
        self._random = random.Random(seed)

    def make_bucket(self):
        """Make a bucket of its own; gives its URL."""
        name = f"bucket-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def client(self):
        """Give what other programs write to buckets with."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._behind}",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            region_name="us-east-1",
        )

    def fault(self, method, conditional):
        if self._random.random() >= self.rate:
            return ""
        allowed = [f for f in self.faults if f != "409" or conditional]
        fault = self._random.choice(allowed) if allowed else ""
        self.struck[fault] += bool(fault)
        return fault

    def stop(self):
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else an answer's body waits 40 ms for the other side to have noted its head.
    disable_nagle_algorithm = True

    def _pass_on(self):
        server = self.server.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        server.requests.append((self.command, self.path, headers))
        if server.answer is not None:
            status, text = server.answer
            text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{text}</Error>'
            self._answer(status, [], text.encode())
            return
        lower = {name.lower() for name in headers}
        fault = server.fault(self.command, bool(lower & {"if-match", "if-none-match"}))
        headers = {k: v for k, v in headers.items() if k.lower() not in server.ignores}
        if fault == "reset":
            self.close_connection = True
            return
        if fault in ("500", "503", "409"):
            code = {"500": "InternalError", "503": "SlowDown", "409": "ConditionalRequestConflict"}
            text = f"<Error><Code>{code[fault]}</Code><Message>made up</Message></Error>".encode()
            self._answer(int(fault), [], text)
            return
        if fault == "slow":
            time.sleep(server.slowness)
        behind = http.client.HTTPConnection("127.0.0.1", server._behind, timeout=60)
        try:
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            content = answer.read()
        finally:
            behind.close()
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), content)

    def _answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((v for k, v in headers if k.lower() == "content-length"), len(content))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
        self.end_headers()
        try:
            self.wfile.write(content if self.command != "HEAD" else b"")
        except OSError:  # whoever asked did not wait
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def log_message(self, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

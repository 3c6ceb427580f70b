"""A bucket on this machine: moto's server in a thread, and before it a proxy that spoils some answers."""

import contextlib
import functools
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

# Answers of these codes, those of 409 to writes on a condition only; `reset` before a request arrives, `lost` after it
# was carried out.
CODES = {"500": "InternalError", "503": "SlowDown", "409": "ConditionalRequestConflict"}
FAULTS = (*CODES, "slow", "reset", "lost")
_numbers = itertools.count()


class Server:
    """Moto's server with a proxy in front of it.

    A share `rate` of requests ends in one of `faults`, which `struck` counts; `requests` has their methods. All get the
    `answer`, a status and the text of an error, if there is one. Headers that it `ignores` do not arrive.
    """

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.behind = self._moto.get_host_and_port()[1]
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._proxy.daemon_threads = True
        self._proxy.server = self
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        self.reset()
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def reset(self, seed=0):
        self.rate, self.faults, self.struck = 0.0, FAULTS, Counter()
        self.requests, self.ignores, self.answer = [], (), None
        self._random = random.Random(seed)

    def make_bucket(self):
        """Make a bucket of its own; gives its URL."""
        name = f"bucket-{next(_numbers)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    @functools.cached_property
    def client(self):
        """What other programs write to buckets with."""
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.behind}", aws_access_key_id="a", aws_secret_access_key="b",
            region_name="us-east-1",
        )  # fmt: skip

    def fault(self, conditional):
        """Draw what happens to a request; "" for nothing."""
        if self._random.random() >= self.rate:
            return ""
        fault = self._random.choice([f for f in self.faults if f != "409" or conditional] or [""])
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
        server.requests.append(self.command)
        fault = server.fault("If-Match" in self.headers or "If-None-Match" in self.headers)
        status, text = server.answer or (fault, f"<Code>{CODES.get(fault)}</Code>")
        if server.answer or fault in CODES:
            self._answer(int(status), {}, f"<Error>{text}</Error>".encode())
            return
        if fault in ("reset", "lost"):
            self.close_connection = True
        if fault == "reset":
            return
        time.sleep(0.5 * (fault == "slow"))
        behind = http.client.HTTPConnection("127.0.0.1", server.behind, timeout=60)
        with contextlib.closing(behind):
            for name in server.ignores:
                del self.headers[name]
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            content = answer.read()
        if fault != "lost":
            self._answer(answer.status, dict(answer.getheaders()), content)

    def _answer(self, status, headers, content):
        headers = {name.lower(): value for name, value in headers.items()}
        if self.command != "HEAD" or "content-length" not in headers:
            headers["content-length"] = str(len(content))
        self.send_response_only(status)
        for name in headers.keys() - {"connection", "transfer-encoding"}:
            self.send_header(name, headers[name])
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

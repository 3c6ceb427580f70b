"""Image files, and files in a folder, in a zip archive that need not be honest, or on a server."""

import functools
import http.server
import io
import struct
import threading
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image


def encoded(pixels, form="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(value=0, shape=(5, 7), form="PNG"):
    return encoded(np.full((*shape, 3), value, np.uint8), form)


def unpack(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def put(dataset, root):
    """Write a dataset's images into a folder, each at its id."""
    return unpack(root, {sample_id: dataset.read(sample_id) for sample_id in dataset.sample_ids})


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return path


@contextmanager
def serving(folder):
    """Serve a folder on this machine; gives its address and the list of what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()
        thread.join()


TEXT = b"to be or not to be, " * 50


@dataclass
class Part:
    """One member of an archive."""

    name: str | bytes
    data: bytes = TEXT
    deflate: bool = True
    mode: int = 0o100644
    flags: int = 0
    method: int | None = None
    size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    local_name: bytes | None = None
    offset: int | None = None
    payload: bytes | None = None


def packed(parts, comment=b"", count=None):
    """Put an archive together as its parts say."""
    out, entries = bytearray(), b""
    for part in parts:
        name = part.name.encode() if isinstance(part.name, str) else part.name
        payload = part.payload
        if payload is None:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            payload = squeeze.compress(part.data) + squeeze.flush() if part.deflate else part.data
        method = part.method if part.method is not None else 8 * part.deflate
        size = len(part.data) if part.size is None else part.size
        length = len(payload) if part.packed_size is None else part.packed_size
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        offset = len(out) if part.offset is None else part.offset
        local = name if part.local_name is None else part.local_name
        fields = (part.flags, method, 0, 0, crc, length, size)
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(local), 0) + local + payload
        entries += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0x0314, 20, *fields, len(name), 0, 0, 0, 0, part.mode << 16, offset
        ) + name  # fmt: skip
    count = len(parts) if count is None else count
    end = (b"PK\5\6", 0, 0, count, count, len(entries), len(out), len(comment))
    return bytes(out) + entries + struct.pack("<4s4H2LH", *end) + comment

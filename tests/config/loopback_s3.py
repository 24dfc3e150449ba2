"""An S3 store on loopback (moto's server), behind a proxy that refuses, slows and cuts connections."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress


class Proxy:
    """Forwards connections to a port. `refused`, `cut` and `slowed` say how many of the next ones fare how."""

    def __init__(self, port):
        self._target, self.refused, self.cut, self.slowed, self.connections = port, 0, 0, 0, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client):
        self.connections += 1
        if self.refused:
            self.refused -= 1
            client.close()
            return
        limit = None
        if self.cut:
            self.cut, limit = self.cut - 1, 200  # bytes of the answer
        if self.slowed:
            self.slowed -= 1
            time.sleep(1.0)
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            threading.Thread(target=_pipe, args=(client, server), daemon=True).start()
            _pipe(server, client, limit)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()

    def close(self):
        self._server.close()


def _pipe(source, sink, limit=None):
    with suppress(OSError):
        while data := source.recv(65536):
            if limit is not None:
                data, limit = data[:limit], limit - len(data)
            sink.sendall(data)
            if limit is not None and limit <= 0:
                break
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def loopback_s3(monkeypatch):
    """The proxy before an empty store with the bucket `bucket`; the environment lets s3fs find it."""
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    from pytest_diffusion.config import remote

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    for name, value in (("AWS_ACCESS_KEY_ID", "key-id"), ("AWS_SECRET_ACCESS_KEY", "very-secret"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr(remote, "_REMOTES", {})
    remote._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    # moto keeps its buckets for the whole process.
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{proxy.port}/moto-api/reset", method="POST")).close()
    fsspec.filesystem("s3").mkdir("bucket")
    try:
        yield proxy
    finally:
        remote._file_system.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.close()
        server.stop()

"""Which build of torch `make` installs, against a server of this test's own."""

import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("torch_index", Path(__file__).parents[2] / ".ci" / "torch_index.py")
torch_index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch_index)


class Index(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = HTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def option(index, *, system="linux", has_gpu=False, listed=""):
    return torch_index.option(system=system, has_gpu=has_gpu, listed=listed, index=index)


def test_a_plain_linux_machine_takes_the_build_for_the_processor(server):
    assert option(f"{server}/cpu") == f"--extra-index-url {server}/cpu"


@pytest.mark.parametrize(
    "changes",
    [
        {"system": "darwin"},
        {"has_gpu": True},
        {"listed": ":env:.find-links='/wheels'"},
        {"listed": "global.extra-index-url='https://mirror'"},
        {"listed": "user.index-url='https://mirror'"},
    ],
)
def test_it_is_left_alone_where_it_would_be_wrong(server, changes):
    assert option(f"{server}/cpu", **changes) == ""


def test_settings_that_say_no_place_do_not_matter(server):
    assert option(f"{server}/cpu", listed=":env:.default-timeout='180'\nglobal.cert='/x'")


def test_an_index_that_does_not_answer_is_left_out(server):
    assert option(f"{server}/missing") == ""
    assert option("http://127.0.0.1:9") == ""

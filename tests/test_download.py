"""Downloads from a server on this machine that misbehaves on request."""

import hashlib
import multiprocessing
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from t2t_analysis.errors import DownloadError
from t2t_analysis.models import download
from t2t_analysis.models.download import fetch, file_sha256, hash_prefix_of

CONTENT = bytes(range(256)) * 12_000  # 3 MB, three pieces


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        told = self.server.told
        told.requests.append((self.command, dict(self.headers)))
        if told.wait:
            time.sleep(told.wait)
        if told.status:
            self.send_error(told.status)
            return
        content, start = told.content, self._start(told)
        if start is not None and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(told, content, start)

    def _start(self, told):
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", told.etag) == told.etag
        return int(wanted[1]) if wanted and told.ranges and same else None

    def _send(self, told, content, start):
        self.send_response(206 if start is not None else 200)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if told.etag:
            self.send_header("ETag", told.etag)
        body = content[start or 0 :]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: told.cuts.pop(0)] if told.cuts else body)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.handle_error = lambda *_: None  # clients that hang up are part of these tests
        http.told = SimpleNamespace(
            content=CONTENT, cuts=[], ranges=True, status=None, wait=0, etag='"v1"', requests=[]
        )
        http.told.url = f"http://127.0.0.1:{http.server_port}/a.pth"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield http.told
        http.shutdown()


def ranges(server):
    return [headers.get("Range") for command, headers in server.requests if command == "GET"]


def left_overs(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_whole_file_arrives_once(server, tmp_path):
    path = fetch(server.url, tmp_path / "new" / "a.pth")
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, path) == path
    assert len(server.requests) == 1
    assert left_overs(path.parent) == ["a.pth"]


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', ""])
def test_a_truncated_answer_is_continued(server, tmp_path, etag):
    server.cuts, server.etag = [1_500_000, 700_000], etag
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1500000-", "bytes=2200000-"]
    assert left_overs(tmp_path) == ["a.pth"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.cuts, server.ranges = [1_500_000], False
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_too_many_truncations_raise_and_the_next_call_goes_on(server, tmp_path):
    server.cuts = [1_000_000, 100, 100]
    with pytest.raises(DownloadError, match=r"broke off 3 times: 1000200 of 3072000 bytes"):
        fetch(server.url, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
    server.requests.clear()
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000200-"]


def test_a_file_that_changed_meanwhile_is_not_spliced(server, tmp_path):
    server.cuts = [1_000_000, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "a.pth")
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("begun", [CONTENT, CONTENT + b"more"], ids=["complete", "too long"])
def test_a_finished_or_overlong_part(server, tmp_path, begun):
    (tmp_path / "a.pth.part").write_bytes(begun)
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT
    assert left_overs(tmp_path) == ["a.pth"]


def test_a_wrong_hash_is_an_error_and_nothing_old_is_lost(server, tmp_path):
    good = hashlib.sha256(CONTENT).hexdigest()
    old = tmp_path / "a.pth"
    old.write_bytes(b"old")
    with pytest.raises(DownloadError, match=rf"expected SHA-256 0123abcd, found {good[:16]}"):
        fetch(server.url, old, "0123abcd")
    assert old.read_bytes() == b"old"
    assert left_overs(tmp_path) == ["a.pth"]
    assert file_sha256(fetch(server.url, old, good[:8])) == good


def test_the_hash_in_a_name_counts(server, tmp_path):
    name = f"vit-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
    assert fetch(server.url, tmp_path / name).is_file()
    with pytest.raises(DownloadError, match="wrong content"):
        fetch(server.url, tmp_path / "vit-0123abcd.pth")
    assert hash_prefix_of("cirfar100_t2t-vit-14_88.4.pth") is None


@pytest.mark.parametrize("status", [404, 500])
def test_http_errors_name_address_and_status(server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"a\.pth answered {status}"):
        fetch(server.url, tmp_path / "a.pth")
    assert left_overs(tmp_path) == []


def test_connection_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot reach .*refused"):
        fetch(f"http://127.0.0.1:{port}/a.pth", tmp_path / "a.pth")


def test_a_silent_server_counts_as_no_network(server, tmp_path):
    server.wait = 1.5
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0.3 s"):
        fetch(server.url, tmp_path / "a.pth", timeout=0.3)
    assert time.monotonic() - start < 1


def test_a_hanging_name_lookup_counts_as_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(1.5))
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0.3 s"):
        fetch("https://example.invalid/a.pth", tmp_path / "a.pth", timeout=0.3)
    assert time.monotonic() - start < 1


def test_a_full_disk_is_said_before_writing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        DownloadError, match=r"3072000 bytes do not fit .* 1000 bytes are free.*T2T_ANALYSIS_CACHE"
    ):
        fetch(server.url, tmp_path / "a.pth")


@pytest.mark.parametrize("url", ["nonsense", "gopher://host/a.pth"])
def test_an_address_that_is_none(tmp_path, url):
    with pytest.raises(DownloadError, match=re.escape(url)):
        fetch(url, tmp_path / "a.pth")


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="file"):
        fetch(server.url, tmp_path / "file" / "a.pth")


def test_a_mirror_in_the_file_system(tmp_path):
    (tmp_path / "mirror.pth").write_bytes(b"x" * 10)
    path = fetch((tmp_path / "mirror.pth").as_uri(), tmp_path / "a.pth")
    assert path.read_bytes() == b"x" * 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, so that the children import nothing anew")
def test_concurrent_processes_share_one_download(server, tmp_path):
    server.wait = 0.2
    path = tmp_path / "a.pth"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=fetch, args=(server.url, path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert len(ranges(server)) == 1


def test_who_waits_for_a_download_notices_that_there_is_no_network(server, tmp_path):
    lock = download.FileLock(tmp_path / "a.pth.lock")
    with lock:
        server.wait = 1.0
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"no answer within|timed out"):
            fetch(server.url, tmp_path / "a.pth", timeout=0.3)
        assert time.monotonic() - start < 0.8

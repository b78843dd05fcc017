"""Downloads from a server on this machine that misbehaves on request."""

import errno
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
        told.requests.append(self.command)
        if told.wait:
            time.sleep(told.wait)
        if told.status:
            self.send_error(told.status)
            return
        if told.moved and told.moved.split("/")[2] != self.headers["Host"]:
            self.send_response(302)
            self.send_header("Location", told.moved)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(CONTENT[: told.cut])


@pytest.fixture
def server():
    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as http:
        http.handle_error = lambda *_: None  # clients that hang up are part of these tests
        http.told = SimpleNamespace(cut=None, moved="", status=None, wait=0, requests=[])
        http.told.url = f"http://127.0.0.1:{http.server_port}/a.pth"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield http.told
        http.shutdown()


def left_overs(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_whole_file_arrives_once(server, tmp_path):
    path = fetch(server.url, tmp_path / "new" / "a.pth")
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, path) == path
    assert server.requests == ["HEAD", "GET"]
    assert left_overs(path.parent) == ["a.pth"]


def test_a_truncated_answer_is_no_file_and_leaves_nothing(server, tmp_path):
    server.cut = 1_500_000
    with pytest.raises(DownloadError, match=r"broke off: 1500000 of 3072000 bytes"):
        fetch(server.url, tmp_path / "a.pth")
    assert left_overs(tmp_path) == []
    server.cut = None
    assert fetch(server.url, tmp_path / "a.pth").read_bytes() == CONTENT
    assert left_overs(tmp_path) == ["a.pth"]


def test_only_encrypted_addresses_also_after_a_redirection(server, tmp_path):
    with pytest.raises(DownloadError, match=r"http://example\.org/a\.pth is refused: expected an https"):
        fetch("http://example.org/a.pth", tmp_path / "a.pth")
    server.moved = server.url.replace("127.0.0.1", "127.0.0.2")  # stands for any other host
    with pytest.raises(DownloadError, match=r"127\.0\.0\.2.* is refused"):
        fetch(server.url, tmp_path / "a.pth")
    assert left_overs(tmp_path) == []


def test_a_wrong_hash_is_an_error_and_nothing_old_is_lost(server, tmp_path):
    good = hashlib.sha256(CONTENT).hexdigest()
    old = tmp_path / "a.pth"
    old.write_bytes(b"old")
    with pytest.raises(DownloadError, match=rf"wrong content.*0123abcd.*{good[:16]}"):
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


def test_a_full_disk_is_said(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "download_url_to_file", full)
    with pytest.raises(DownloadError, match=r"No space left on device.*T2T_ANALYSIS_CACHE"):
        fetch(server.url, tmp_path / "a.pth")
    assert left_overs(tmp_path) == []


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
    assert server.requests.count("GET") == 1


def test_who_waits_for_a_download_notices_that_there_is_no_network(server, tmp_path):
    with download.FileLock(tmp_path / "a.pth.lock"):
        server.wait = 1.0
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"no answer within|timed out"):
            fetch(server.url, tmp_path / "a.pth", timeout=0.3)
        assert time.monotonic() - start < 0.8


def test_a_server_that_falls_silent_is_not_waited_for_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_length", lambda *_: 0)
    monkeypatch.setattr(download, "_STALL", 0.3)
    server.wait = 1.5
    start = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        fetch(server.url, tmp_path / "a.pth")
    assert time.monotonic() - start < 1

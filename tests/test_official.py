"""Downloads from a local server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from cifar_files import (
    CIFAR10,
    archived,
    assert_is_cifar10,
    cifar10_files,
    pack,
)

from convexbn import ConvexBNError, InputError
from convexbn.datasets import DownloadError, download, read_cifar10
from convexbn.datasets.__main__ import main
from convexbn.datasets.official import OFFICIAL, OfficialFile

CONTENT = np.random.default_rng(0).bytes(700_000)


class Site(BaseHTTPRequestHandler):
    """Serves CONTENT at /whole/..., half of it at /half/..., nothing else; counts requests."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        found = self.path.startswith(("/whole/", "/half/"))
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.end_headers()
        if found:
            self.wfile.write(CONTENT if self.path.startswith("/whole/") else CONTENT[: len(CONTENT) // 2])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Site, "requests", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    """Let these be the official files of MNIST."""
    monkeypatch.setitem(OFFICIAL, "mnist", tuple(OfficialFile(url, hashlib.md5(CONTENT).hexdigest()) for url in urls))


def test_downloads_are_whole_and_not_repeated(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz", f"{site}/whole/two.gz")
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert download("mnist", folder) == [folder / "one.gz", folder / "two.gz"]
    assert [path.read_bytes() == CONTENT for path in sorted(folder.iterdir())] == [True, True]
    assert Site.requests == ["/whole/one.gz", "/whole/two.gz"]


@pytest.mark.parametrize(("place", "message"), [("half", "md5 sum .*discarded: try again later"), ("gone", "404.*check the connection")])
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, site, place, message):
    offer(monkeypatch, f"{site}/{place}/one.gz")
    with pytest.raises(DownloadError, match=message):
        download("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz")

    def interrupt(*arguments: Any) -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_connection_the_error_says_what_to_do(tmp_path, monkeypatch, site):
    monkeypatch.setattr("socket.create_connection", lambda *arguments, **options: (_ for _ in ()).throw(OSError("unreachable")))
    with pytest.raises(DownloadError, match=r"cifar-10-python.tar.gz couldn't be fetched .*unreachable.*check the connection.*put it into"):
        download("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert issubclass(DownloadError, ConvexBNError)


def test_a_file_of_the_user_is_never_replaced(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz")
    (tmp_path / "one.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"^folder: .*one.gz is there with another md5 sum .*: remove it"):
        download("mnist", tmp_path)
    assert (tmp_path / "one.gz").read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"^folder = .*can't be made"):
        download("mnist", tmp_path / "one.gz")
    assert Site.requests == []


@pytest.mark.parametrize(
    ("name", "folder", "message"), [("cifar", ".", "^name = 'cifar' is unknown"), ("mnist", None, "^folder = None is no path")]
)
def test_unusable_arguments_of_a_download(name, folder, message):
    with pytest.raises(InputError, match=message):
        download(name, folder)


def test_the_command_prints_the_files_or_the_error(tmp_path, monkeypatch, site, capsys):
    offer(monkeypatch, f"{site}/whole/one.gz")
    assert main(["mnist", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.gz'}\n"
    offer(monkeypatch, f"{site}/gone/two.gz")
    assert main(["mnist", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main(["unknown", str(tmp_path)])


def test_a_downloaded_archive_is_read_from_its_folder(tmp_path, monkeypatch, site):
    archive = tmp_path / "served"
    md5 = pack(archive, archived(cifar10_files(), CIFAR10))
    monkeypatch.setattr(sys.modules[__name__], "CONTENT", archive.read_bytes())
    monkeypatch.setitem(OFFICIAL, "cifar10", (OfficialFile(f"{site}/whole/cifar-10-python.tar.gz", md5),))
    download("cifar10", tmp_path / "data")
    assert_is_cifar10(read_cifar10(tmp_path / "data"))


def test_official_files_are_fetched_over_https_and_known_by_md5():
    for file in (file for files in OFFICIAL.values() for file in files):
        assert file.url.startswith("https://")
        assert len(bytes.fromhex(file.md5)) == 16


def test_importing_the_readers_opens_no_connection():
    script = (
        "import socket\n"
        "def refuse(*arguments, **options): raise AssertionError('a socket')\n"
        "socket.socket = socket.create_connection = refuse\n"
        "import sys, convexbn.datasets\n"
        "print([name for name in ('urllib.request', 'http.client', 'rich', 'torch', 'torchvision') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"

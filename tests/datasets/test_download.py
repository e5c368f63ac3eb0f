"""`download` against a local server: whole, broken off, wrong, hostile."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import download as module
from datasets.base import DatasetError
from datasets.download import ARCHIVES, BY_HAND, download
from tests.conftest import make_mvtec
from tests.datasets.test_public import MADE


@dataclass
class Server:
    """What is served and how; `asked` holds the Range header of each request."""

    url: str = ""
    body: bytes = b""
    ranges: bool = True
    status: int = 200
    drop_after: list[int] = field(default_factory=list)  # bytes sent before the connection breaks, per request
    asked: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.state = server
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        state, wanted = self.state, self.headers.get("Range")
        state.asked.append(wanted)
        if state.status != 200:
            self.send_error(state.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
        total = len(state.body)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        stop = state.drop_after.pop(0) if state.drop_after else total
        self.wfile.write(state.body[start : start + stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(archive: bytes) -> Iterator[Server]:
    state = Server(body=archive)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state))
    state.url = f"http://127.0.0.1:{httpd.server_port}/set.tar.xz"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


def pack(fill: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        fill(tar)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar.xz with the categories bottle and cable and a read-only folder, as the official ones have."""
    root = tmp_path_factory.mktemp("archive")
    for i, name in enumerate(("bottle", "cable")):
        make_mvtec(root / name, seed=i, train=3, good=2, bad=2)
    (root / "license.txt").write_text("terms")

    def fill(tar: tarfile.TarFile) -> None:
        def read_only(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mode = 0o555 if member.isdir() else 0o444
            return member

        for name in ("bottle", "cable", "license.txt"):
            tar.add(root / name, name, filter=read_only)

    return pack(fill)


def fetch(server: Server, root: Path, **more: object) -> str:
    more = {"sha256": hashlib.sha256(server.body).hexdigest(), "url": server.url, "quiet": True} | more
    return download("mvtec_ad", root, **more)  # type: ignore[arg-type]


def test_plain_then_already_there(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    assert fetch(server, root) == f"mvtec_ad: 2 categories unpacked to {root / 'mvtec_ad'}"
    assert list(datasets.find("mvtec_ad", root)) == ["bottle", "cable"]
    assert len(datasets.load("mvtec_ad", "cable", root).train) == 3
    assert [p.name for p in root.iterdir()] == ["mvtec_ad"]  # nothing else stays
    assert (root / "mvtec_ad").stat().st_mode & 0o777 == 0o755
    assert "already there with 2 categories" in fetch(server, root) and len(server.asked) == 1


def test_the_progress_bars_show_time_left(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fetch(server, tmp_path, quiet=False)
    shown = capsys.readouterr().err
    assert "mvtec_ad: 100%" in shown and "checksum: 100%" in shown and "unpack: 100%" in shown and "<00:00" in shown


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.drop_after = [1000, 500, 1]
    fetch(server, tmp_path)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-", "bytes=1501-"]
    assert (tmp_path / "mvtec_ad/bottle").is_dir()


def test_interrupted_then_called_again(server: Server, tmp_path: Path) -> None:
    server.drop_after = [1000, 0, 0, 0, 0]
    with pytest.raises(DatasetError, match="run this again, it goes on where it stopped"):
        fetch(server, tmp_path)
    part = tmp_path / ".download/mvtec_ad.part"
    assert part.read_bytes() == server.body[:1000] and not (tmp_path / "mvtec_ad").exists()
    server.drop_after, server.asked[:] = [], []
    fetch(server, tmp_path)
    assert server.asked == ["bytes=1000-"] and not (tmp_path / ".download").exists()


@pytest.mark.parametrize("have", ["whole", "longer"])
def test_a_part_that_has_all_already(server: Server, tmp_path: Path, have: str) -> None:
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/mvtec_ad.part").write_bytes(server.body + (b"" if have == "whole" else b"more"))
    fetch(server, tmp_path)
    assert len(server.asked) == (1 if have == "whole" else 2)


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drop_after = False, [1000]
    fetch(server, tmp_path)
    assert server.asked == [None, "bytes=1000-"] and (tmp_path / "mvtec_ad/cable").is_dir()


def test_an_archive_put_there_by_hand_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/mvtec_ad.tar.xz").write_bytes(server.body)
    fetch(server, tmp_path)
    assert server.asked == [] and (tmp_path / "mvtec_ad/cable").is_dir()


def test_a_wrong_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"sha256 is [0-9a-f]{64}, not cf4313b.*by hand from https://www.mvtec.com"):
        fetch(server, tmp_path, sha256=None)  # the official one
    assert not (tmp_path / "mvtec_ad").exists() and not list((tmp_path / ".download").glob("mvtec_ad.[pt]*"))


@pytest.mark.parametrize("status", [403, 404])
def test_gone(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DatasetError, match=rf"the server answers {status} .*fetch it by hand from .*mvtec_ad\.tar\.xz"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_a_failing_server_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(DatasetError, match=r"not reached.*503"):
        fetch(server, tmp_path)
    assert len(server.asked) == module.TRIES


def test_no_network(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"not reached .*check the network"):
        fetch(server, tmp_path, url="http://127.0.0.1:1/set.tar.xz")


def test_a_disk_too_small_is_seen_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match=r"still to come; 0\.0 GiB are free there, make room"):
        fetch(server, tmp_path)


def test_a_disk_that_fills_while_unpacking(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", full)
        with pytest.raises(DatasetError, match=r"No space left on device; .*make room .*run this again to go on"):
            fetch(server, tmp_path)
    assert {p.name for p in (tmp_path / ".download").iterdir()} <= {"mvtec_ad.tar.xz", "mvtec_ad.lock"}
    fetch(server, tmp_path)
    assert len(server.asked) == 1  # what was fetched is kept


def test_a_target_that_is_something_else(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mvtec_ad").mkdir()
    (tmp_path / "mvtec_ad/notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="exists but holds no category; move it away"):
        fetch(server, tmp_path)
    assert (tmp_path / "mvtec_ad/notes.txt").read_text() == "mine"


def test_a_root_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="another --data-root"):
        fetch(server, tmp_path / "file")


def test_two_downloads_at_once(server: Server, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / ".download").mkdir()
    with FileLock(tmp_path / ".download/mvtec_ad.lock"), pytest.raises(DatasetError, match="another download"):
        fetch(server, tmp_path)


def _member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "") -> Callable:
    def fill(tar: tarfile.TarFile) -> None:
        for path in ("bottle/train/good/000.png", "bottle/test/good/000.png"):
            info = tarfile.TarInfo(path)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(data)
        tar.addfile(info, io.BytesIO(data))

    return fill


@pytest.mark.parametrize("fill", [
    _member("../outside", data=b"x"), _member("bottle/../../outside", data=b"x"), _member("/outside", data=b"x"),
    _member("bottle/link", tarfile.SYMTYPE, link="/etc/passwd"), _member("bottle/link", tarfile.SYMTYPE, link="train"),
    _member("bottle/hard", tarfile.LNKTYPE, link="bottle/train/good/000.png"), _member("bottle/pipe", tarfile.FIFOTYPE),
    _member("bottle/device", tarfile.CHRTYPE),
])
def test_hostile_members_are_refused(server: Server, tmp_path: Path, fill: Callable) -> None:
    server.body, root = pack(fill), tmp_path / "a" / "b"
    with pytest.raises(DatasetError, match="is a link or leads outside"):
        fetch(server, root)
    assert {p.relative_to(root).parts[0] for p in root.rglob("*")} == {".download"}
    assert not (tmp_path / "outside").exists() and not (tmp_path / "a/outside").exists()
    assert {p.name for p in (root / ".download").iterdir()} <= {"mvtec_ad.tar.xz", "mvtec_ad.lock"}


def test_an_archive_that_unpacks_to_too_much(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = pack(_member("bottle/huge", data=bytes(10**6)))
    monkeypatch.setattr(module, "MAX_BYTES", 10**5)
    with pytest.raises(DatasetError, match="larger than any known dataset"):
        fetch(server, tmp_path)
    monkeypatch.setattr(module, "MAX_BYTES", 10**9)
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    with pytest.raises(DatasetError, match="larger than any known dataset"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("body", [b"no archive", b"", pack(lambda _: None), pack(_member("x"))[:90]])
def test_what_is_no_dataset_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    server.body = body or b"\0" * 2000
    with pytest.raises(DatasetError, match=r"cannot be unpacked|holds no <category>"):
        fetch(server, tmp_path)
    assert not (tmp_path / "mvtec_ad").exists()


def test_categories_one_folder_deeper(server: Server, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(server.body)) as tar:
        members = [(m, tar.extractfile(m).read() if m.isreg() else b"") for m in tar]

    def fill(out: tarfile.TarFile) -> None:
        for member, data in members:
            member.name = f"mvtec/{member.name}"
            out.addfile(member, io.BytesIO(data))

    server.body = pack(fill)
    fetch(server, tmp_path)
    assert list(datasets.find("mvtec_ad", tmp_path)) == ["bottle", "cable"]


def test_unknown_names_and_addresses(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'viso' cannot be downloaded, did you mean 'visa'\?; known: mvtec_ad, "):
        download("viso", tmp_path)
    with pytest.raises(DatasetError, match="only http and https"):
        download("mvtec_ad", tmp_path, url="file:///etc/passwd")
    assert list(tmp_path.iterdir()) == []


def test_official_archives_have_a_checksum_and_a_secure_address() -> None:
    assert set(ARCHIVES) | set(BY_HAND) == set(datasets.PUBLIC)
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://") and archive.url.endswith(archive.suffix)
        assert len(archive.sha256) in (32, 64)
        assert np.all([c in "0123456789abcdef" for c in archive.sha256])


def zipped(root: Path, names: list[str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                packed.write(path, f"BTech_Dataset_transformed/{path.relative_to(root)}")
        for name in names or []:
            packed.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("md5", [False, True])
def test_a_zip_file_with_either_checksum(server: Server, tmp_path: Path, md5: bool) -> None:
    (tmp_path / "source").mkdir()
    MADE["btad"][0](tmp_path / "source")
    server.body = zipped(tmp_path / "source")
    digest = hashlib.md5(server.body) if md5 else hashlib.sha256(server.body)
    said = download("btad", tmp_path / "data", url=server.url, sha256=digest.hexdigest(), quiet=True)
    assert said.startswith("btad: 1 category unpacked to")
    assert len(datasets.load("btad", "03", tmp_path / "data").test) == 4
    with pytest.raises(DatasetError, match="md5 is .*, not 0000" if md5 else "sha256 is .*, not 0000"):
        download("btad", tmp_path / "again", url=server.url, sha256="0" * (32 if md5 else 64), quiet=True)


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "a\\..\\out.png"])
def test_a_zip_file_that_leads_outside_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    MADE["btad"][0](tmp_path / "source")
    server.body = zipped(tmp_path / "source", [name])
    with pytest.raises(DatasetError, match="is a link or leads outside"):
        download("btad", tmp_path / "data", url=server.url, sha256=hashlib.sha256(server.body).hexdigest(), quiet=True)
    assert not list(tmp_path.rglob("out.png")) and not (tmp_path / "data/btad").exists()


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_fetched_by_hand_is_told_where_from_and_where_to(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"unpack it from https://.* into {tmp_path / name}"):
        download(name, tmp_path)

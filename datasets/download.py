"""Fetches a public dataset's official archive: resumable, checked against its checksum, unpacked safely.

Addresses and checksums as in anomalib 2.7 (its data modules; for MVTec 3D-AD an MD5). Sets behind a form, or without an
address that stays, are fetched by hand.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from datasets.base import DatasetError
from datasets.catalog import OFFICIAL
from datasets.layouts import folders, is_category
from datasets.public import found_in
from datasets.sources import near

CHUNK = 1 << 20
TIMEOUT_S = 30.0
TRIES = 4  # broken connections in a row without a new byte
PAUSE_S = 2.0  # before another try; doubles each time
MAX_BYTES = 200 * 2**30  # unpacked; far above any of the sets
MAX_MEMBERS = 200_000


class Archive(NamedTuple):
    """An official archive and the page where it can be fetched by hand."""

    url: str
    sha256: str  # or an MD5, of 32 digits
    page: str
    suffix: str = ".tar.xz"


DRAWN = ("demo", "demo_loco", "demo_flat_connector")
"""What the command `download` draws itself."""
ARCHIVES = {
    "mvtec_ad": Archive(
        "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/"
        "mvtec_anomaly_detection.tar.xz",
        "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    ),
    "mvtec_loco": Archive(
        "https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/430647091-1646842701/"
        "mvtec_loco_anomaly_detection.tar.xz",
        "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
    ),
    "visa": Archive(
        "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        "https://github.com/amazon-science/spot-diff", ".tar",
    ),
    "mvtec_ad_2": Archive(
        "https://www.mydrive.ch/shares/150997/701c90d3aea6588f404936e32a674602/download/466712769-1743429042/"
        "mvtec_ad_2.tar.gz",
        "c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2", ".tar.gz",
    ),
    "btad": Archive(
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        "https://avires.dimi.uniud.it/papers/btad/", ".zip",
    ),
    "mvtec_3d": Archive(
        "https://www.mydrive.ch/shares/150646/25de33f1276dd418cd856f2f48a84cdb/download/428824485-1643299897/"
        "mvtec_3d_anomaly_detection.tar.xz",
        "d8bb2800fbf3ac88e798da6ae10dc819",
        "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
    ),
}

BY_HAND = {
    "mpdd": "https://github.com/stepanje/MPDD",
    "kolektor_sdd2": "https://www.vicos.si/resources/kolektorsdd2/",
    "real_iad": "https://huggingface.co/datasets/REAL-IAD/Real-IAD (access is granted on request)",
}


def download(
    dataset: str, data_root: Path, *, url: str | None = None, sha256: str | None = None, quiet: bool = False
) -> str:
    """Fetch and unpack a public dataset to `<data_root>/<dataset>`; returns what was done, in words.

    The archive is collected in `<data_root>/.download/<dataset>.part` and goes on from there when a call is repeated.
    url, sha256: another place and checksum than the official ones. quiet: no progress bars.
    Raises DatasetError with what to do: unknown dataset, no network, an archive that is gone, a wrong checksum, a full
    disk, an archive with links or with paths that lead outside, a target that is something else.
    """
    if dataset in BY_HAND:
        raise DatasetError(
            f"{dataset} has no address that a program can fetch; unpack it from {BY_HAND[dataset]} into "
            f"{Path(data_root) / dataset}, so that `run_benchmark.py list datasets` finds it"
        )
    if dataset not in ARCHIVES:
        known = [*ARCHIVES, *DRAWN]
        raise DatasetError(f"{dataset!r} cannot be downloaded{near(dataset, known)}; known: {', '.join(known)}")
    official = ARCHIVES[dataset]
    url, sha256 = url or official.url, (sha256 or official.sha256).lower()
    if not url.startswith(("http://", "https://")):
        raise DatasetError(f"{url}: only http and https addresses are fetched")
    data_root = Path(data_root)
    target, folder = data_root / dataset, data_root / ".download"
    if target.exists():
        return _already(dataset, target)
    from filelock import FileLock, Timeout

    archive = folder / f"{dataset}{official.suffix}"
    by_hand = f"fetch it by hand from {official.page} and save it as {archive}, then run this again"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{dataset}.lock", timeout=0):
            if not archive.exists():
                part = folder / f"{dataset}.part"
                _fetch(url, part, by_hand, quiet)
                os.replace(part, archive)
            _verify(archive, sha256, url, by_hand, quiet)
            count = _unpack(archive, target, quiet)
            archive.unlink()
    except Timeout:
        raise DatasetError(f"{folder}: another download of {dataset} is running; wait for it") from None
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise DatasetError(f"{what}; {_space(data_root)}, then run this again to go on") from error
    if all(p.suffix == ".lock" for p in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
    return f"{dataset}: {count} {'category' if count == 1 else 'categories'} unpacked to {target}"


def _already(dataset: str, target: Path) -> str:
    count = _categories(dataset, target) if target.is_dir() else 0
    if not count:
        raise DatasetError(f"{target} exists but holds no category; move it away and run this again")
    return f"{target} is already there with {count} categories; to fetch it anew, move it away first"


def _categories(dataset: str, folder: Path) -> int:
    """How many categories of the dataset a folder holds; for one without a catalogue, any."""
    return len(found_in(dataset, folder, OFFICIAL[dataset])) or sum(map(is_category, folders(folder)))


def _space(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free there, make room or choose another --data-root"


def _bar(title: str, total: int | None, done: int, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet)


# ---------------------------------------------------------------- fetch


def _fetch(url: str, part: Path, by_hand: str, quiet: bool) -> None:
    """Bring `part` to its full length; a connection that breaks is taken up again where it broke."""
    failures, pause = 0, PAUSE_S
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(url, part, before, quiet):
                return
            problem: BaseException | str = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DatasetError(f"{url}: the server answers {error.code} {error.reason}; {by_hand}") from error
            problem = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = getattr(error, "reason", None) or error
        if part.exists() and part.stat().st_size > before:
            failures, pause = 0, PAUSE_S
        failures += 1
        if failures >= TRIES:
            raise DatasetError(
                f"{url}: not reached ({problem or type(problem).__name__}); check the network and run this again, it "
                f"goes on where it stopped, or {by_hand}"
            )
        time.sleep(pause)
        pause *= 2


def _fetch_rest(url: str, part: Path, have: int, quiet: bool) -> bool:
    """One request for what is missing; True when the file is whole then."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: the file is whole, unless it is longer than the server's.
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True
        part.unlink()
        return False
    with response:
        length = response.headers.get("Content-Length")
        if have and not (
            response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        ):
            have = 0  # this server cannot go on in the middle: from the start
        total = have + int(length) if length and length.isdigit() else None
        if total and total - have > shutil.disk_usage(part.parent).free:
            raise DatasetError(f"{part}: {(total - have) / 2**30:.1f} GiB are still to come; {_space(part.parent)}")
        with part.open("ab" if have else "wb") as file, _bar(part.stem, total, have, quiet) as bar:
            for block in _blocks(response):
                file.write(block)
                bar.update(len(block))
            size = file.tell()
    return total is None or size >= total


def _blocks(response: Any) -> Iterator[bytes]:
    """What the server sends. Any error in reading is one of the connection, unlike one in writing the file."""
    while True:
        try:
            block = response.read(CHUNK)
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not block:
            return
        yield block


def _verify(archive: Path, sha256: str, url: str, by_hand: str, quiet: bool) -> None:
    digest = hashlib.md5(usedforsecurity=False) if len(sha256) == 32 else hashlib.sha256()
    with archive.open("rb") as file, _bar("checksum", archive.stat().st_size, 0, quiet) as bar:
        while block := file.read(CHUNK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != sha256:
        archive.unlink()
        raise DatasetError(
            f"{url}: {digest.name} is {digest.hexdigest()}, not {sha256}; the file was removed. Run this again; should "
            f"it happen twice, the archive has changed: {by_hand}"
        )


# ---------------------------------------------------------------- unpack


def _unpack(archive: Path, target: Path, quiet: bool) -> int:
    """Unpack beside the archive, then move the folder of the categories into place; returns their number."""
    folder = Path(tempfile.mkdtemp(dir=archive.parent, prefix=f"{target.name}-"))
    try:
        with archive.open("rb") as file, _bar("unpack", archive.stat().st_size, 0, quiet) as bar:
            extract = _extract_zip if archive.suffix == ".zip" else _extract
            extract(archive, file, folder, lambda: bar.update(file.tell() - bar.n))
        root = next((f for f in (folder, *folders(folder)) if _categories(target.name, f)), None)
        if root is None:
            raise DatasetError(f"{archive}: holds no <category>/train/good; it is another archive, remove it")
        root.chmod(0o755)
        os.replace(root, target)
        return _categories(target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: Path, file: BinaryIO, folder: Path, progress: Callable[[], Any]) -> None:
    """Write the members below `folder`; refuses everything but plain files and folders inside it."""
    total = 0
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for count, member in enumerate(tar, 1):
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                    raise DatasetError(f"{archive}: refused, {member.name!r} is a link or leads outside; remove it")
                total += member.size
                if total > MAX_BYTES or count > MAX_MEMBERS:
                    raise DatasetError(f"{archive}: refused, unpacked it is larger than any known dataset; remove it")
                tar.extract(member, folder, filter="data")
                progress()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        with suppress(OSError):
            archive.unlink()
        raise DatasetError(f"{archive}: cannot be unpacked ({error}); it was removed, run this again") from error


def _extract_zip(archive: Path, file: BinaryIO, folder: Path, progress: Callable[[], Any]) -> None:
    """The same for a zip file, whose members' checksums are compared as they are read."""
    total = 0
    try:
        with zipfile.ZipFile(file) as packed:
            for count, member in enumerate(packed.infolist(), 1):
                path = PurePosixPath(member.filename)
                link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or "\\" in member.filename or link:
                    raise DatasetError(f"{archive}: refused, {member.filename!r} is a link or leads outside; remove it")
                total += member.file_size
                if total > MAX_BYTES or count > MAX_MEMBERS:
                    raise DatasetError(f"{archive}: refused, unpacked it is larger than any known dataset; remove it")
                packed.extract(member, folder)
                progress()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        with suppress(OSError):
            archive.unlink()
        raise DatasetError(f"{archive}: cannot be unpacked ({error}); it was removed, run this again") from error

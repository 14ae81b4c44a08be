"""CIFAR10 in both of its releases, whole, broken, downloaded and not."""

import hashlib
import threading
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
from PIL import Image
from support.sources import cifar_archive, cifar_files, expect_small_releases, ready, refused, write_files

from datamodules import CIFAR10
from datamodules.datasets import cifar10
from flows.errors import StorageError

FOLDERS = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}


@pytest.fixture(autouse=True)
def small_releases(monkeypatch):
    """Released on this machine alone, where no server is unless a test starts one."""
    expect_small_releases(monkeypatch)
    monkeypatch.setattr(cifar10, "MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def source(tmp_path):
    """A folder with the unpacked files of the binary release."""
    write_files(tmp_path / "source", cifar_files("binary")[0])
    return tmp_path / "source"


def cifar(tmp_path, **options):
    folders = {"prepared_dir": str(tmp_path / "prepared"), "download_dir": str(tmp_path / "downloads")}
    return CIFAR10(**folders | {"source": str(tmp_path / "source"), "num_converters": 1} | options)


@pytest.mark.parametrize("release", ["binary", "python"])
@pytest.mark.parametrize("kind", ["archive", "folder of the archive", "unpacked", "folder of the unpacked"])
def test_every_form_gives_the_same_images(tmp_path, release, kind):
    source = tmp_path / "source"
    source.mkdir()
    archive, train, test = cifar_archive(source, release)
    if "unpacked" in kind:
        archive.unlink()
        write_files(source / FOLDERS[release], cifar_files(release)[0])
    given = {"archive": archive, "unpacked": source / FOLDERS[release]}.get(kind, source)
    data = ready(cifar(tmp_path, source=str(given), splits="paper"))
    assert np.array_equal(data.train.gather(range(20)).numpy(), train)
    assert np.array_equal(data.test.gather(range(4)).numpy(), test)
    assert data.train.labels.tolist() == [number % 10 for number in range(20)]
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.manifest["source"] == {"name": "cifar10", "source": str(given.resolve())}


def test_holdout_splits_hold_out_every_tenth_image(tmp_path, source):
    data = ready(cifar(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 2, 4]
    whole = cifar_files("binary")[1]
    assert np.array_equal(data.val.gather([0, 1]).numpy(), whole[[5, 15]])
    assert data.val.labels.tolist() == [5, 5]
    seen = np.concatenate([data.train.gather(range(18)).numpy(), data.val.gather(range(2)).numpy()])
    assert len(np.unique(seen.reshape(20, -1), axis=0)) == 20
    assert data.selection_note is None and data.description.startswith("cifar10 (holdout splits): 18 training")


def test_one_channel_is_pillows_luminance(tmp_path, source):
    data = ready(cifar(tmp_path, splits="paper", num_channels=1))
    colour = cifar_files("binary")[1]
    expected = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colour])
    assert np.array_equal(data.train.gather(range(20))[:, 0].numpy(), expected)
    assert data.folder.name == "cifar10-grey"


def test_the_source_is_not_needed_again(tmp_path, source):
    ready(cifar(tmp_path))
    assert len(ready(cifar(tmp_path, source=str(tmp_path / "gone"))).train) == 18


def test_a_missing_source_is_named(tmp_path, source):
    (source / "data_batch_3.bin").unlink()
    for name in ("gone", "source"):
        refused(cifar(tmp_path, source=str(tmp_path / name)), f"no whole CIFAR10 at .*{name}: give data.source")


@pytest.mark.parametrize("kept", [0, 1, 30, 5000])
def test_a_truncated_archive_is_refused_and_kept(tmp_path, kept):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    archive.write_bytes(archive.read_bytes()[:kept])
    refused(cifar(tmp_path, source=str(archive)), r"cannot read .*cifar-10-binary\.tar\.gz .*: get it again")
    assert archive.exists()


def test_broken_files_are_named(tmp_path, source):
    whole = (source / "data_batch_3.bin").read_bytes()
    for content in (whole[:-1], whole + b"x", b""):
        (source / "data_batch_3.bin").write_bytes(content)
        refused(cifar(tmp_path), "data_batch_3.bin .*: get it again")


def test_a_pickle_that_is_not_the_published_one_runs_no_code(tmp_path):
    files = cifar_files("python")[0]
    harm = f"cos\nmkdir\n(V{tmp_path / 'made'}\ntR.".encode()
    write_files(tmp_path / "source", {**files, "data_batch_1": harm})
    refused(cifar(tmp_path), "data_batch_1 differs from the published file")
    assert not (tmp_path / "made").exists()


@pytest.fixture
def publish(monkeypatch):
    """Serves a folder from this machine, as the archive's mirror."""

    @contextmanager
    def serving(folder, md5=""):
        with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            monkeypatch.setattr(cifar10, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
            monkeypatch.setattr(cifar10, "ARCHIVE_MD5", md5)
            yield
            server.shutdown()

    return serving


def test_the_archive_is_downloaded_once(tmp_path, publish):
    archive, train, _ = cifar_archive(tmp_path, "binary")
    with publish(tmp_path, hashlib.md5(archive.read_bytes()).hexdigest()):
        data = ready(cifar(tmp_path, source=None, splits="paper"))
    assert np.array_equal(data.train.gather(range(20)).numpy(), train)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [archive.name]
    assert ready(cifar(tmp_path, source=None, num_channels=1)).folder.name == "cifar10-grey"


def test_no_network_and_a_proxys_page_are_told_with_the_remedy(tmp_path, publish):
    refused(cifar(tmp_path, source=None), r"cannot download .*127\.0\.0\.1.*data\.source")
    write_files(tmp_path, {"cifar-10-binary.tar.gz": b"<html>please log in</html>"})
    with publish(tmp_path, hashlib.md5(b"").hexdigest()):
        refused(cifar(tmp_path, source=None), r"cannot download .*hash.*data\.source")
    assert not list((tmp_path / "downloads").iterdir())


def test_a_download_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "downloads").write_text("a file")
    refused(cifar(tmp_path, source=None), "downloads", StorageError)

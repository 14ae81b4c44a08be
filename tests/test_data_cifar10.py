"""CIFAR10 in both of its releases, whole, broken, downloaded and not."""

import functools
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from support.sources import cifar_archive, cifar_files, expect_small_releases, write_files

from datamodules import CIFAR10
from datamodules.datasets import cifar10
from datamodules.prepared import SELECTED_ON_TEST
from flows.errors import InputError, StorageError

FOLDERS = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}


@pytest.fixture(autouse=True)
def small_releases(monkeypatch):
    expect_small_releases(monkeypatch)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing but this machine may be asked for anything."""
    asked = requests.Session.request

    def request(self, method, url, **options):
        assert url.startswith("http://127.0.0.1:"), url
        return asked(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", request)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def cifar(tmp_path, **options):
    folders = {"prepared_dir": str(tmp_path / "prepared"), "download_dir": str(tmp_path / "downloads")}
    return CIFAR10(**{**folders, "num_converters": 1, **options})


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def nothing_is_left(tmp_path):
    prepared = tmp_path / "prepared"
    return not prepared.exists() or all(path.suffix == ".lock" for path in prepared.iterdir())


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
    assert data.train.gather([0]).dtype == torch.uint8
    assert data.train.labels.tolist() == [number % 10 for number in range(20)]
    assert data.test.labels.tolist() == [0, 1, 2, 3]


def test_holdout_splits_hold_out_every_tenth_image(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    data = ready(cifar(tmp_path, source=str(tmp_path / "source")))
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 2, 4]
    whole = cifar_files("binary")[1]
    assert np.array_equal(data.val.gather([0, 1]).numpy(), whole[[5, 15]])
    assert data.val.labels.tolist() == [5, 5]
    seen = np.concatenate([data.train.gather(range(18)).numpy(), data.val.gather(range(2)).numpy()])
    assert len(np.unique(seen.reshape(20, -1), axis=0)) == 20
    assert data.selection_note is None and data.description.startswith("cifar10 (holdout splits): 18 training")


def test_paper_splits_say_that_they_select_on_the_test_images(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    data = ready(cifar(tmp_path, source=str(tmp_path / "source"), splits="paper"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [20, 4, 4]
    assert data.selection_note == SELECTED_ON_TEST and SELECTED_ON_TEST in data.description


def test_one_channel_is_pillows_luminance(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    data = ready(cifar(tmp_path, source=str(tmp_path / "source"), splits="paper", num_channels=1))
    colour = cifar_files("binary")[1]
    expected = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colour])
    assert np.array_equal(data.train.gather(range(20))[:, 0].numpy(), expected)
    assert data.folder.name == "cifar10-grey"


def test_the_source_is_not_needed_again(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    ready(cifar(tmp_path, source=str(tmp_path / "source")))
    assert len(ready(cifar(tmp_path, source=str(tmp_path / "gone"))).train) == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 64}, "32 x 32"),
        ({"num_channels": 2}, "num_channels"),
        ({"num_converters": 0}, "num_converters"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        cifar(tmp_path, **options)


def refused(tmp_path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        ready(cifar(tmp_path, **options))
    assert "\n" not in str(caught.value)
    assert nothing_is_left(tmp_path)


def test_a_missing_source_is_named(tmp_path):
    refused(tmp_path, "no whole CIFAR10 at .*gone: give data.source", source=str(tmp_path / "gone"))
    files = cifar_files("binary")[0]
    del files["data_batch_3.bin"]
    write_files(tmp_path / "source", files)
    refused(tmp_path, "no whole CIFAR10 at .*source: give data.source", source=str(tmp_path / "source"))


@pytest.mark.parametrize("kept", [0, 1, 30, 5000])
def test_a_truncated_archive_is_refused_and_kept(tmp_path, kept):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    archive.write_bytes(archive.read_bytes()[:kept])
    refused(tmp_path, r"cannot read .*cifar-10-binary\.tar\.gz .*: get it again", source=str(archive))
    assert archive.exists()


@pytest.mark.parametrize("content", [lambda old: old[:-1], lambda old: old + b"x", lambda old: b""])
@pytest.mark.parametrize("name", ["data_batch_3.bin", "data_batch_2"])
def test_broken_files_are_named(tmp_path, name, content):
    files = cifar_files("binary" if name.endswith("bin") else "python")[0]
    write_files(tmp_path / "source", {**files, name: content(files[name])})
    refused(tmp_path, f"{name} .*: get it again", source=str(tmp_path / "source"))


def test_a_pickle_that_is_not_the_published_one_runs_no_code(tmp_path):
    files = cifar_files("python")[0]
    harm = f"cos\nmkdir\n(V{tmp_path / 'made'}\ntR.".encode()
    write_files(tmp_path / "source", {**files, "data_batch_1": harm})
    refused(tmp_path, r"data_batch_1 differs from the published file", source=str(tmp_path / "source"))
    assert not (tmp_path / "made").exists()


class Server:
    """A web server on this machine that answers from a folder, or everything with one page."""

    def __init__(self, folder, page=None):
        handler = functools.partial(self._handler(page), directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def _handler(page):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                if page is None:
                    return super().do_GET()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        return Handler

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *arguments):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(monkeypatch):
    """Download from there what is in a file, or anything."""

    def use(address, content=b""):
        monkeypatch.setattr(cifar10, "MIRROR", f"{address}/")
        monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())

    return use


def test_the_archive_is_downloaded_once(tmp_path, mirror):
    archive, train, _ = cifar_archive(tmp_path, "binary")
    with Server(tmp_path) as server:
        mirror(server.address, archive.read_bytes())
        data = ready(cifar(tmp_path, splits="paper"))
    assert np.array_equal(data.train.gather(range(20)).numpy(), train)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [archive.name]
    assert ready(cifar(tmp_path, num_channels=1)).folder.name == "cifar10-grey"


def test_no_network_and_a_proxys_page_are_told_with_the_remedy(tmp_path, mirror):
    mirror("http://127.0.0.1:9")
    refused(tmp_path, r"cannot download .*127\.0\.0\.1.*data\.source")
    with Server(tmp_path, b"<html>please log in</html>") as proxy:
        mirror(proxy.address)
        refused(tmp_path, r"cannot download .*hash.*data\.source")
    assert not list((tmp_path / "downloads").iterdir())


def test_a_download_folder_that_cannot_be_written_is_a_storage_error(tmp_path, mirror):
    (tmp_path / "downloads").write_text("a file")
    with Server(tmp_path, b"x") as server, pytest.raises(StorageError, match="downloads"):
        mirror(server.address)
        ready(cifar(tmp_path))


def test_the_manifest_tells_where_the_images_come_from(tmp_path):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    data = ready(cifar(tmp_path, source=str(archive)))
    source = json.loads((data.folder / "manifest.json").read_text())["source"]
    assert source == {"name": "cifar10", "source": str(archive.resolve())}

"""CIFAR10 in both of its releases, whole, broken, downloaded and not."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from small_sources import cifar_archive, cifar_files, md5_of, python2_pickle, random_images, write_files

from datamodules import CIFAR10
from datamodules.datasets.cifar10 import CHECKSUMS
from datamodules.prepared import SELECTED_ON_TEST
from flows.errors import InputError, StorageError

FOLDERS = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}


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
    options = {"images_per_file": 4, "num_converters": 1, **options}
    return CIFAR10(prepared_dir=str(tmp_path / "prepared"), download_dir=str(tmp_path / "downloads"), **options)


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
    checksums = {release: md5_of(archive)}
    if "unpacked" in kind:
        archive.unlink()
        write_files(source / FOLDERS[release], cifar_files(release)[0])
    given = {"archive": archive, "unpacked": source / FOLDERS[release]}.get(kind, source)
    if kind == "folder of the archive":
        archive.rename(source / f"cifar-10-{release}.tar.gz")
    data = ready(cifar(tmp_path, source=str(given), checksums=checksums, splits="paper"))
    assert np.array_equal(data.train.gather(range(20)).numpy(), train)
    assert np.array_equal(data.test.gather(range(4)).numpy(), test)
    assert data.train.gather([0]).dtype == torch.uint8
    assert data.train.labels.tolist() == [number % 10 for number in range(20)]
    assert data.test.labels.tolist() == [0, 1, 2, 3] and data.manifest["classes"][3] == "cat"


def test_the_true_counts_and_checksums_are_the_default(tmp_path):
    data = CIFAR10(prepared_dir=str(tmp_path))
    assert (data.images_per_file, data.checksums, data.folder_name) == (10_000, None, "cifar10")
    assert set(CHECKSUMS) == {"binary", "python"}


def test_holdout_splits_hold_out_every_tenth_image(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    data = ready(cifar(tmp_path, source=str(tmp_path / "source")))
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 2, 4]
    whole = cifar_files("binary")[1]
    assert np.array_equal(data.val.gather([0, 1]).numpy(), whole[[5, 15]])
    assert data.val.labels.tolist() == [5, 5]
    seen = np.concatenate([data.train.gather(range(18)).numpy(), data.val.gather(range(2)).numpy()])
    assert len(np.unique(seen.reshape(20, -1), axis=0)) == 20
    assert data.selection_note is None and data.description.startswith("cifar10-excerpt4 (holdout splits): 18 training")


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
    assert data.folder.name == "cifar10-excerpt4-grey"


def test_the_source_is_not_needed_again(tmp_path):
    write_files(tmp_path / "source", cifar_files("binary")[0])
    ready(cifar(tmp_path, source=str(tmp_path / "source")))
    assert len(ready(cifar(tmp_path, source=str(tmp_path / "gone"))).train) == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": "other"}, "holdout or paper"),
        ({"image_size": 64}, "32 x 32"),
        ({"num_channels": 2}, "num_channels"),
        ({"images_per_file": 0}, "images_per_file"),
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
    refused(tmp_path, "no CIFAR10 at .*gone: give data.source", source=str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "no CIFAR10 at .*empty: give data.source", source=str(tmp_path / "empty"))


def test_an_archive_with_another_checksum_is_refused_and_kept(tmp_path):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    refused(tmp_path, r"binary\.tar\.gz has none of the checksums.*download it again", source=str(archive))
    assert archive.exists()


@pytest.mark.parametrize("kept", [0, 1, 30, 5000])
def test_a_truncated_archive_is_refused(tmp_path, kept):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    archive.write_bytes(archive.read_bytes()[:kept])
    refused(tmp_path, "cifar-10-binary.*(again|lacks)", source=str(archive), checksums={"binary": md5_of(archive)})


def with_file(tmp_path, release, name, content):
    files = cifar_files(release)[0]
    if content is None:
        del files[name]
    else:
        files[name] = content(files[name])
    write_files(tmp_path / "source", files)
    return str(tmp_path / "source")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", None, "cannot read .*data_batch_3.bin"),
        ("data_batch_3.bin", lambda old: old[:-1], "12,291 bytes instead of 12,292"),
        ("data_batch_3.bin", lambda old: old + b"x", "12,293 bytes instead of 12,292"),
        ("data_batch_3.bin", lambda old: b"", "0 bytes instead"),
        ("test_batch.bin", lambda old: b"\x0a" + old[1:], r"test_batch.bin has labels other than 0 to 9"),
    ],
)
def test_broken_binary_files_are_named(tmp_path, name, content, message):
    refused(tmp_path, message, source=with_file(tmp_path, "binary", name, content))


FLAT = random_images(4).reshape(4, -1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda old: old[:-9], "damaged or not a pickle"),
        (lambda old: b"<html>", "damaged or not a pickle"),
        (lambda old: b"", "damaged or not a pickle"),
        (lambda old: python2_pickle(FLAT[:3], [0] * 3), r"shape \(3, 3072\) and 3 labels instead of 4"),
        (lambda old: python2_pickle(FLAT[:, :9], [0] * 4), r"shape \(4, 9\)"),
        (lambda old: python2_pickle(FLAT, [0] * 5), "5 labels"),
        (lambda old: python2_pickle(FLAT, [0, 1, 2, -1]), "labels other than 0 to 9"),
        (lambda old: python2_pickle(FLAT, [0, 1, 2, 3]).replace(b"U\x04data", b"U\x04date"), "lacks data"),
        (lambda old: python2_pickle(FLAT, [0] * 4, descr=b"O8"), "damaged or not a pickle"),
        (lambda old: b"\x80\x02]q\x00.", "lacks data"),
    ],
)
def test_broken_pickles_are_named(tmp_path, content, message):
    source = with_file(tmp_path, "python", "data_batch_2", content)
    refused(tmp_path, rf"data_batch_2.*{message}", source=source)


def test_a_file_of_the_python_release_is_compared_with_its_checksum(tmp_path):
    source = with_file(tmp_path, "python", "data_batch_2", lambda old: old)
    refused(tmp_path, r"data_batch_1 differs from the published file", source=source, images_per_file=10_000)


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


def test_the_first_mirror_that_delivers_is_used(tmp_path):
    source = tmp_path / "www"
    source.mkdir()
    archive, train, _ = cifar_archive(source, "binary")
    archive.rename(source / "cifar-10-binary.tar.gz")
    checksums = {"binary": md5_of(source / "cifar-10-binary.tar.gz")}
    with Server(source, b"<html>please log in</html>") as proxy, Server(tmp_path) as empty, Server(source) as good:
        mirrors = ["http://127.0.0.1:9", proxy.address, empty.address, f"{good.address}/"]
        data = ready(cifar(tmp_path, mirrors=mirrors, checksums=checksums, splits="paper"))
    assert np.array_equal(data.train.gather(range(20)).numpy(), train)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_no_network_and_a_proxys_page_are_told_with_the_remedy(tmp_path):
    with Server(tmp_path, b"<html>please log in</html>") as proxy:
        mirrors = ["http://127.0.0.1:9", proxy.address]
        refused(tmp_path, r"cannot download.*no connection.*proxy's page.*data\.source", mirrors=mirrors)
    downloads = tmp_path / "downloads"
    assert not downloads.exists() or not list(downloads.iterdir())


def test_a_download_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "downloads").write_text("a file")
    with Server(tmp_path, b"x") as server, pytest.raises(StorageError, match="downloads"):
        ready(cifar(tmp_path, mirrors=[server.address]))


def test_the_manifest_tells_where_the_images_come_from(tmp_path):
    archive, _, _ = cifar_archive(tmp_path, "binary")
    data = ready(cifar(tmp_path, source=str(archive), checksums={"binary": md5_of(archive)}))
    source = json.loads((data.folder / "manifest.json").read_text())["source"]
    expected = {"name": "cifar10-excerpt4", "checksum": md5_of(archive)}
    assert source == expected | {"archive": str(archive.resolve())}

"""Archives and pickles that mean harm do none, and are named in one line."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from small_sources import python2_pickle, random_images, write_tar

from datamodules.datasets.cifar10 import load_plain
from datamodules.preparing.archives import index_pictures, unpack
from flows.errors import InputError


def add(name, kind=tarfile.REGTYPE, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return lambda tar: tar.addfile(member, io.BytesIO(bytes(size)))


@pytest.mark.parametrize(
    "extra",
    [
        add("../outside.bin"),
        add("folder/../../outside.bin"),
        add("..\\outside.bin"),
        add("/etc/outside.bin"),
        add("C:\\outside.bin"),
        add("\\\\server\\outside.bin"),
        add("link.bin", tarfile.SYMTYPE, "/etc/passwd"),
        add("link.bin", tarfile.LNKTYPE, "wanted.bin"),
        add("wanted.bin", tarfile.SYMTYPE, "../outside.bin"),
        add("pipe", tarfile.FIFOTYPE),
        add("device", tarfile.CHRTYPE),
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nothing_is_made_outside_of_the_folder(tmp_path, extra, mode):
    archive, target = tmp_path / "archive.tar", tmp_path / "inside" / "target"
    write_tar(archive, {"folder/wanted.bin": b"content"}, mode, extra)
    before = set(tmp_path.rglob("*"))
    try:
        unpack(archive, target)
    except InputError as error:
        assert "archive.tar is damaged" in str(error) and "\n" not in str(error)
    made = set(tmp_path.rglob("*")) - before - {target.parent, target}
    assert all(target in path.parents for path in made)
    assert all(path.is_dir() or (path.is_file() and path.resolve().is_relative_to(target)) for path in made)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_is_no_picture(tmp_path, kind):
    write_tar(tmp_path / "a.tar", {"b.png": b"1"}, "w", add("a.png", kind, "/etc/passwd"))
    assert index_pictures(tmp_path / "a.tar", ".png")[0].tolist() == [b"b.png"]


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path):
    member = tarfile.TarInfo("0.png")
    member.size = 1 << 19
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar is damaged"):
        index_pictures(tmp_path / "a.tar", ".png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><p>log in", "not an uncompressed tar"),
        (b"", "not an uncompressed tar"),
        (bytes(range(256)) * 9, "not an uncompressed tar"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=message):
        index_pictures(tmp_path / "a.tar", ".png")
    with pytest.raises(InputError, match="No such file"):
        index_pictures(tmp_path / "gone.tar", ".png")


def test_the_index_of_a_tar_is_sorted_and_passes_over_hidden_files(tmp_path):
    write_tar(tmp_path / "a.tar", {"x/2.png": b"two", "x/._1.png": b"?", "x/1.png": b"one", "x/readme": b""})
    names, offsets, sizes = index_pictures(tmp_path / "a.tar", ".png")
    content = (tmp_path / "a.tar").read_bytes()
    found = [content[start : start + size] for start, size in zip(offsets, sizes, strict=True)]
    assert (names.tolist(), found) == ([b"1.png", b"2.png"], [b"one", b"two"])
    write_tar(tmp_path / "a.tar.gz", {"1.png": b""}, "w:gz")
    with pytest.raises(InputError, match="not an uncompressed tar"):
        index_pictures(tmp_path / "a.tar.gz", ".png")


class RunsCode:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def loaded(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    return load_plain(tmp_path / "batch")


GLOBALS = ["posix\nsystem", "os\nsystem", "builtins\neval", "__builtin__\neval", "subprocess\nPopen", "numpy\nload",
           "numpy.core.multiarray\nfromstring", "numpy\nfromfile", "builtins\ngetattr", "copyreg\n_reconstructor",
           "datamodules.datasets.cifar10\nload_plain", "torch\nload"]  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS)
def test_no_function_is_ever_found(tmp_path, name):
    with pytest.raises(InputError, match=r"batch wants to use .*do not trust this file"):
        loaded(tmp_path, f"c{name}\n(U\x04echotR.".encode())


@pytest.mark.parametrize("protocol", range(6))
def test_code_does_not_run(tmp_path, protocol):
    target = tmp_path / "made"
    with pytest.raises(InputError):
        loaded(tmp_path, pickle.dumps({"data": RunsCode(os.mkdir, str(target))}, protocol))
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy.core.multiarray\n_reconstruct\nN}U\x01ai\x86b.",  # state for a function
        b"cnumpy.core.multiarray\n_reconstruct\n(N}U\x09_functionNs\x86b.",  # attributes of a function
        b"cnumpy.core.multiarray\n_reconstruct\n(tR.",  # an array without content
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # a new object of no class
        b"c_codecs\nencode\n(U\x03rotU\x05rot13tR.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # a long of 2 GB
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 8 EB
        b"Pelsewhere\n.",  # a persistent object
        b"\x80\x02(ccollections\nOrderedDict\no.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)  # fmt: skip
def test_crafted_pickles_are_refused(tmp_path, content):
    with pytest.raises(InputError):
        loaded(tmp_path, content)


def test_nothing_can_be_changed_for_the_next_file(tmp_path):
    with pytest.raises(InputError):
        loaded(tmp_path, b"cnumpy.core.multiarray\n_reconstruct\n(N}U\x08__call__Ns\x86b.")
    data = random_images(2).reshape(2, -1)
    assert np.array_equal(loaded(tmp_path, python2_pickle(data, [1, 2]))[b"data"], data)


@pytest.mark.parametrize("protocol", range(5))
def test_todays_pickles_of_plain_data_are_read(tmp_path, protocol):
    data = random_images(2).reshape(2, -1)
    batch = {b"data": data, b"labels": [1, 2], "text": "é", "number": 1.5, "nothing": None, "pair": (1, True)}
    found = loaded(tmp_path, pickle.dumps(batch, protocol))
    assert np.array_equal(found[b"data"], data) and found["pair"] == (1, True) and found["text"] == "é"
    fortran = loaded(tmp_path, pickle.dumps(np.asfortranarray(data), protocol))
    assert np.array_equal(fortran, data)


def test_a_missing_pickle_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_plain(tmp_path / "gone")

"""The PNG files of van den Oord's release of ImageNet, in a tar or a folder."""

from __future__ import annotations

from pathlib import Path

from datamodules.preparing.conversion import Chunk
from datamodules.preparing.decoding import PictureReader, unscaled
from datamodules.preparing.pictures import Place, list_archive, picture_chunks


def find_chunks(source: Path, size: int) -> dict[str, list[Chunk]]:
    """The images of each split, from its archive, or else from its folder."""
    found = {}
    for split, name in (("train", "train"), ("test", "valid")):
        folder = source / f"{name}_{size}x{size}"
        archive = folder.with_name(f"{folder.name}.tar")
        files = map(str, folder.glob("[!.]*.png"))  # more than a million, of which paths would take a gigabyte
        places = list_archive(archive, ".png") if archive.is_file() else [Place(path) for path in sorted(files)]
        found[split] = picture_chunks(places, PictureReader((3, size, size), unscaled))
    return found

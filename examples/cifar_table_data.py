"""The images of `cifar_table.py`: training, validation and test parts, and the rows that are fitted on them."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexbn.datasets import read_cifar10, read_cifar100
from convexbn.training import evaluate

VALIDATION = 0.1  # of the training images
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Images (n, 3, 32, 32) of bytes, their labels (n,) out of so many classes, and a folder for what needn't be computed twice."""

    images: np.ndarray
    labels: np.ndarray
    classes: int
    folder: Path

    @property
    def inputs(self) -> torch.Tensor:
        """(n, 3, 32, 32) float32, from 0 to 1."""
        return torch.as_tensor(self.images).float() / 255.0

    @property
    def pixels(self) -> np.ndarray:
        """(n, 3072) float64, from 0 to 1."""
        return self.images.reshape(len(self.images), -1) / 255.0

    @property
    def targets(self) -> np.ndarray:
        """(n, C) one-hot rows."""
        one_hot: np.ndarray = np.eye(self.classes)[self.labels]
        return one_hot

    def first(self, count: int | None) -> "Part":
        """The first so many; they come in a random order."""
        return Part(self.images[:count], self.labels[:count], self.classes, self.folder)

    def drawn(self, count: int | None, seed: int) -> "Part":
        """So many at random, for each seed others; all of them where there are no more."""
        if count is None or count >= len(self.labels):
            return self
        chosen = np.random.default_rng(seed).choice(len(self.labels), count, replace=False)
        return Part(self.images[chosen], self.labels[chosen], self.classes, self.folder)

    def cached(self, *words: Any) -> Path:
        """A file of this name that belongs to these images."""
        *name, suffix = words
        return self.folder / f"{'_'.join(map(str, name))}_{zlib.crc32(self.images.tobytes()):08x}{suffix}"

    def square_beta(self, fraction: float) -> float:
        """That fraction of beta_max for the squared loss where n <= d: the norm of the largest column of the targets."""
        return fraction * float(np.sqrt(np.bincount(self.labels).max()))

    def accuracy(self, model: torch.nn.Module) -> float:
        """The share of images whose largest output is that of their class; the images go to the model as they are."""
        return float(np.mean(evaluate(model, self.inputs).argmax(axis=1) == self.labels))


@dataclass(frozen=True)
class Split:
    """What choices are made on, and the test part, which each row reads once a seed, at its end."""

    train: Part
    validation: Part
    whole: Part
    test: Part


def load(dataset: str, folder: Path, output: Path, most: int | None = None) -> Split:
    """The official files, or a subset in their format, the training images in one random order; at most so many of each part."""
    data = read_cifar10(folder) if dataset == "cifar10" else read_cifar100(folder)
    order = np.random.default_rng(0).permutation(len(data.train_labels))[:most]
    tests = np.random.default_rng(1).permutation(len(data.test_labels))[:most]
    classes = len(data.class_names)
    output.mkdir(parents=True, exist_ok=True)
    whole = Part(data.train_images[order], data.train_labels[order], classes, output)
    count = len(order) - max(1, int(VALIDATION * len(order)))
    held = Part(whole.images[count:], whole.labels[count:], classes, output)
    return Split(whole.first(count), held, whole, Part(data.test_images[tests], data.test_labels[tests], classes, output))


def principal(part: Part, count: int) -> torch.nn.Sequential:
    """Flatten, and a fixed Linear to the leading principal directions of the pixels, in float32."""
    path = part.cached("principal", count, ".npy")
    if not path.exists():
        pixels = part.inputs.flatten(1)
        pixels -= pixels.mean(0)
        if len(pixels) > pixels.shape[1]:
            directions = torch.linalg.eigh(pixels.T @ pixels)[1][:, -count:].T.flip(0)
        else:
            directions = torch.linalg.svd(pixels, full_matrices=False)[2][:count]
        np.save(path, directions.numpy())
    weight = torch.as_tensor(np.load(path))
    project = torch.nn.Linear(weight.shape[1], len(weight), bias=False).requires_grad_(False)
    project.weight.copy_(weight)
    return torch.nn.Sequential(torch.nn.Flatten(), project)


class WithMirror(torch.nn.Module):
    """(n, 1, 2, d) coordinates of images and of their mirror images, as two patches of an image."""

    def __init__(self, coordinates_of: torch.nn.Module) -> None:
        super().__init__()
        self.coordinates_of = coordinates_of

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Both, next to each other."""
        return torch.stack([self.coordinates_of(images), self.coordinates_of(images.flip(3))], dim=1).unsqueeze(1)


def coordinates(before: torch.nn.Module, part: Part) -> torch.Tensor:
    """What a module without state makes of the images, in pieces that bound the memory."""
    pieces = [torch.as_tensor(part.images[start : start + 1000]).float() / 255.0 for start in range(0, len(part.images), 1000)]
    return torch.cat([before(images) for images in pieces])


@dataclass(frozen=True)
class Trained:
    """A model from images to outputs, and what is known of its objective on the images it was trained on."""

    model: torch.nn.Module
    objective: float | None = None
    bound: float | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    table : the heading that it stands under
    name : of the method
    fit : (images, settings, seed, device) to a trained model
    grid : settings that the validation images choose from; one alone is no choice
    shared : settings of all of them
    final : what is different in the final fits, on all training images
    choice_of : another row of the table, above, whose choice is taken over
    samples, choice_samples : training images of the final fits, which the seed draws, and of the choice; None takes all
    seeds : of the final fits
    """

    table: str
    name: str
    fit: Callable[[Part, Settings, int, str], Trained]
    grid: tuple[Settings, ...] = ({},)
    shared: Settings = field(default_factory=dict)
    final: Settings = field(default_factory=dict)
    choice_of: str = ""
    samples: int | None = None
    choice_samples: int | None = None
    seeds: int = 1

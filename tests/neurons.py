"""Random neurons, the same ones split up, and what a set of neurons computes and costs. Tests import it: `from neurons import ...`."""

from __future__ import annotations

import numpy as np

from convexbn import (
    whiten,
)

Neurons = tuple[np.ndarray, np.ndarray]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_basis(samples: int, features: int, seed: int = 0) -> np.ndarray:
    return whiten(np.random.default_rng(seed).standard_normal((samples, features))).basis


def random_neurons(basis: np.ndarray, width: int, outputs: int = 1, seed: int = 1) -> Neurons:
    generator = np.random.default_rng(seed)
    return unit(generator.standard_normal((width, basis.shape[1]))), generator.standard_normal((width, outputs))


def values(basis: np.ndarray, directions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return sum((np.outer(np.maximum(basis @ s, 0.0), w) for s, w in zip(directions, outputs, strict=True)), np.zeros((len(basis), 1)))


def penalty(directions: np.ndarray, outputs: np.ndarray) -> float:
    return float(sum(np.linalg.norm(s) * np.linalg.norm(w) for s, w in zip(directions, outputs, strict=True)))


def atoms(basis: np.ndarray, directions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The phi_j = vec( (U's_j)_+ w_j^T / ||w_j|| ) as columns, one after the other."""
    return np.column_stack(
        [np.outer(np.maximum(basis @ s, 0.0), w / np.linalg.norm(w)).ravel() for s, w in zip(directions, outputs, strict=True)]
    )


def sorted_neurons(directions: np.ndarray, outputs: np.ndarray) -> Neurons:
    order = np.lexsort(np.round(directions, 6).T)
    return directions[order], outputs[order]


def assert_as_good(basis: np.ndarray, before: Neurons, after: Neurons, tolerance: float = 1e-9) -> None:
    f = values(basis, *before)
    assert np.linalg.norm(values(basis, *after) - f) <= tolerance * np.linalg.norm(f) + 1e-12 * penalty(*before)
    assert penalty(*after) <= penalty(*before) * (1.0 + tolerance) + 1e-300
    assert len(after[0]) == len(after[1]) <= len(before[0])


def with_shares(neurons: Neurons, seed: int, copies: int = 3) -> Neurons:
    """Every neuron as several of the same direction with shares of its output."""
    shares = np.random.default_rng(seed).dirichlet(np.ones(copies), size=len(neurons[0]))
    return np.repeat(neurons[0], copies, axis=0), (neurons[1][:, None, :] * shares[:, :, None]).reshape(-1, neurons[1].shape[1])


def with_splits(basis: np.ndarray, neurons: Neurons, seed: int) -> Neurons:
    """Every neuron s, w as two of the same cell, (s + e)/2 and (s - e)/2, with e so short that no sign changes."""
    generator = np.random.default_rng(seed)
    directions, outputs = [], []
    for s, w in zip(*neurons, strict=True):
        e = generator.standard_normal(len(s))
        e *= 0.9 * np.min(np.abs(basis @ s)) / np.max(np.abs(basis @ e))
        directions += [s + e, s - e]
        outputs += [0.5 * w, 0.5 * w]
    return np.array(directions), np.array(outputs)

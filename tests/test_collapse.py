"""Neural collapse: known configurations, invariances, and the collapse of the closed form for one-hot targets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from convexbn import InputError, fit_convex_bn, neural_collapse, random_layers
from convexbn.features import extract


def simplex(classes: int, each: int, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes at the unit vectors, with `spread` times +1 and -1 added in a direction of its own to each half of a class."""
    labels = np.repeat(np.arange(classes), each)
    noise = spread * np.where(np.arange(len(labels)) % 2 == 0, 1.0, -1.0)
    return np.column_stack([np.eye(classes)[labels], noise]), labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_unit_vectors_have_collapsed(classes: int) -> None:
    found = neural_collapse(*simplex(classes, 4))
    assert found.within == 0.0
    assert found.angles <= 1e-14
    assert found.inequality <= 1e-14
    np.testing.assert_allclose(found.cosines, np.where(np.eye(classes) == 1, 1.0, -1.0 / (classes - 1)), atol=1e-14)


def test_within_class_variability_by_hand() -> None:
    """Two classes at -1 and +1 with deviations +-3 along the line between them: tr(S_W S_B^+) / C = 9 / 1 / 2."""
    features, labels = np.array([[-4.0], [2.0], [-2.0], [4.0]]), ["a", "a", "b", "b"]
    assert neural_collapse(features, labels).within == pytest.approx(4.5, rel=1e-14)


def test_variability_across_the_means_does_not_count_as_s_b_is_zero_there() -> None:
    assert neural_collapse(*simplex(3, 4, spread=0.5)).within <= 1e-28


def test_rotations_shifts_and_scales_change_nothing() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((30, 6)), np.arange(30) % 3
    rotation = orthogonal_procrustes(generator.standard_normal((6, 6)), generator.standard_normal((6, 6)))[0]
    one, other = neural_collapse(features, labels), neural_collapse(5.0 * features @ rotation + 2.0, labels)
    assert other.within == pytest.approx(one.within, rel=1e-10)
    assert other.angles == pytest.approx(one.angles, rel=1e-10)
    assert other.inequality == pytest.approx(one.inequality, rel=1e-10)
    assert other.within > 0.1 < other.angles


def test_within_is_the_trace_of_the_definition() -> None:
    generator = np.random.default_rng(1)
    features, labels = generator.standard_normal((40, 5)), np.arange(40) % 4
    means = np.array([features[labels == c].mean(axis=0) for c in range(4)])
    deviations, centred = features - means[labels], means - features.mean(axis=0)
    expected = np.trace(deviations.T @ deviations / 40 @ np.linalg.pinv(centred.T @ centred / 4)) / 4
    assert neural_collapse(features, labels).within == pytest.approx(expected, rel=1e-10)


def test_the_optimum_of_a_deep_network_has_collapsed() -> None:
    generator = np.random.default_rng(2)
    X, labels = generator.standard_normal((24, 5)), np.arange(24) % 4
    layers = random_layers(X, [60, 60])
    fit = fit_convex_bn(X, np.eye(4)[labels], features=layers)
    assert fit.whitening.rank == 23
    assert fit.solution.solver == "closed form"
    hidden = fit.network.activations(extract(layers, X))
    found = neural_collapse(hidden, labels)
    assert max(found.within, found.angles, found.inequality) <= 1e-9
    assert neural_collapse(extract(layers, X), labels).within > 0.5
    for c in range(4):
        j = int(np.argmax(fit.network.outputs[:, c]))
        np.testing.assert_allclose(hidden[:, j] / np.linalg.norm(hidden[:, j]), (labels == c) / np.sqrt(6), atol=1e-10)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((4, 2)), [0, 1, 0], "^labels have shape"),
        (np.ones((4, 2)), [0, 0, 0, 0], "^labels have shape .* 1 class"),
        (np.ones((4, 2)), [0, 1, 0, 1], "^features have the same mean"),
        (np.ones(4), [0, 1, 0, 1], r"^features have shape \(4,\)"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "^features holds NaN"),
    ],
)
def test_unusable_input_is_refused(features: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        neural_collapse(features, labels)

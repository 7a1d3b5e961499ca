"""The gates that are drawn: they turn with the basis, lean to strong directions as far as asked, and look at windows where asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexbn import InputError, LocalGates, fit_gated_bn
from convexbn.gated.gates import choose_gates
from convexbn.solvers.masked import gated_patterns
from convexbn.whitening import whiten

SHAPE = 2, 3, 4  # of the images: 24 pixels


def images(seed: int, count: int = 60) -> np.ndarray:
    """(count, 24) images whose neighbouring pixels depend on each other."""
    return np.cumsum(np.random.default_rng(seed).standard_normal((count, 24)), axis=1)


@pytest.mark.parametrize("gates", [9, LocalGates(9, (1, 1, 3), 1)])
def test_gates_turn_with_the_signs_of_singular_vectors(gates: int | LocalGates):
    whitening = whiten(np.random.default_rng(10).standard_normal((20, 3)))
    signs = np.array([-1.0, 1.0, -1.0])
    turned = replace(whitening, components=whitening.components * signs, basis=whitening.basis * np.append(signs, 1.0))
    one, other = (gated_patterns(part.basis, choose_gates(gates, part, 4)) for part in (whitening, turned))
    assert np.array_equal(one, other)


def test_gates_that_lean_all_the_way_are_weights_on_the_centred_data():
    X = np.random.default_rng(11).standard_normal((40, 3)) * [100.0, 1.0, 0.01]
    whitening = whiten(X)
    even, leaning = choose_gates(30, whitening, 4, distinct=False), choose_gates(30, whitening, 4, 1.0, distinct=False)
    weights = even[:, :-1] @ whitening.components.T
    centred = (X - X.mean(axis=0)) / whitening.scale
    images = leaning[:, :-1] @ whitening.basis[:, :-1].T * whitening.singular_values[0]
    np.testing.assert_allclose(images, weights @ centred.T, rtol=1e-9, atol=1e-9)


def test_the_offset_of_gates_that_lean_is_in_proportion():
    whitening = whiten(np.random.default_rng(12).standard_normal((40, 3)) * [100.0, 1.0, 0.01])
    gates = choose_gates(20_000, whitening, 4, 2.0, distinct=False)
    sizes = np.mean(gates**2, axis=0)
    assert sizes[-1] == pytest.approx(np.mean(sizes[:-1]), rel=0.05)


def test_local_gates_are_signs_of_filters_on_images_whitened_in_place():
    X, gates = images(13), LocalGates(30, SHAPE, 2)
    whitening = whiten(X, rank=24)
    found = gated_patterns(whitening.basis, choose_gates(gates, whitening, 5, distinct=False))
    centred = X - X.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    whitened = centred @ (vectors / np.sqrt(values)) @ vectors.T
    assert np.array_equal(found, gates.filters(30, np.random.default_rng(5)) @ whitened.T >= 0)


def test_filters_fill_a_window_of_all_channels_and_nothing_else():
    filters = LocalGates(1, SHAPE, 2).filters(200, np.random.default_rng(0)).reshape(200, *SHAPE)
    places = set()
    for image in filters:
        channels, rows, columns = np.nonzero(image)
        assert len(rows) == 8
        assert [len(set(index)) for index in (channels, rows, columns)] == [2, 2, 2]
        assert np.ptp(rows) == np.ptp(columns) == 1
        places.add((rows.min(), columns.min()))
    assert len(places) == 6  # all that there are


def test_local_gates_see_the_same_through_coordinates_and_in_any_unit():
    X, gates = images(14), LocalGates(30, SHAPE, 3)
    turn = np.linalg.qr(np.random.default_rng(15).standard_normal((24, 24)))[0]
    turned = LocalGates(30, SHAPE, 3, projection=turn)
    one, other, larger = (
        gated_patterns(whitening.basis, choose_gates(chosen, whitening, 6, 0.3))
        for whitening, chosen in ((whiten(X, rank=9), gates), (whiten(X @ turn.T, rank=9), turned), (whiten(1e3 * X + 5.0, rank=9), gates))
    )
    assert np.array_equal(one, other)
    assert np.array_equal(one, larger)


def test_local_gates_that_repeat_are_drawn_again_as_long_as_that_helps():
    whitening = whiten(images(16, 4))  # four samples have at most 14 patterns that are neither empty nor full
    patterns = gated_patterns(whitening.basis, choose_gates(LocalGates(200, SHAPE, 2), whitening, 0))
    assert 5 <= len(patterns) == len(np.unique(patterns, axis=0)) < 16
    assert patterns.any(axis=1).all()


def test_windows_where_all_images_are_the_same_have_no_gates():
    X = images(19)
    X.reshape(60, *SHAPE)[:, :, :, :3] = 0.5  # of the six windows two look at the last column
    for distinct in (False, True):
        gates = choose_gates(LocalGates(40, SHAPE, 2), whiten(X), 2, distinct=distinct)
        assert 0 < len(gates) < 40 or distinct
        assert np.linalg.norm(gates, axis=1).min() > 0.1
    assert fit_gated_bn(X, X[:, -1] ** 2, gates=LocalGates(10, SHAPE, 2)).certificate.relative_gap <= 1e-4


def test_a_fit_takes_local_gates_and_leans_them():
    X = images(17)
    fits = [fit_gated_bn(X, X[:, 0] * X[:, 9], gates=LocalGates(12, SHAPE, 2), lean=lean, seed=3) for lean in (0.0, 0.5)]
    for fit in fits:
        assert fit.certificate.relative_gap <= 1e-4
        assert fit.program.gates.shape == (12, 25)
        assert not fit.program.gates[:, -1].any()
    strengths = (fits[0].whitening.singular_values / fits[0].whitening.singular_values[0]) ** 0.5
    np.testing.assert_allclose(fits[1].program.gates[:, :-1], strengths * fits[0].program.gates[:, :-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, SHAPE, 2), "^count = 0 is too small"),
        ((5, SHAPE, 4), r"^window = 4 is larger than images of shape \(2, 3, 4\)"),
        ((5, SHAPE, 0), "^window = 0 is too small"),
        ((5, (3, 4), 2), r"^shape = \(3, 4\) can't be used"),
        ((5, (0, 3, 4), 2), "^shape = 0 is too small"),
        ((5, SHAPE, 2, np.ones((3, 7))), r"^projection has shape \(3, 7\): pass a column for each of the 24 pixels"),
        ((5, SHAPE, 2, np.ones((3, 24))), "^X has 24 columns, but the gates are for 3"),
        ((5, (1, 3, 4), 2), "^X has 24 columns, but the gates are for 12"),
    ],
)
def test_local_gates_that_cannot_be_are_refused(arguments: tuple[object, ...], message: str):
    with pytest.raises(InputError, match=message):
        choose_gates(LocalGates(*arguments), whiten(images(18)), 0)

"""The gates that are drawn: they turn with the basis, and lean to strong directions as far as asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexbn.gated.gates import choose_gates
from convexbn.solvers.masked import gated_patterns
from convexbn.whitening import whiten


def test_gates_turn_with_the_signs_of_singular_vectors():
    whitening = whiten(np.random.default_rng(10).standard_normal((20, 3)))
    signs = np.array([-1.0, 1.0, -1.0])
    turned = replace(whitening, components=whitening.components * signs, basis=whitening.basis * np.append(signs, 1.0))
    one, other = (gated_patterns(part.basis, choose_gates(9, part, 4)) for part in (whitening, turned))
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

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, grid, lattices

from convexbn.validation import InputError
from convexbn.whitening import whiten

RANKS = {
    "duplicate rows": 2,
    "lattice with ties": 2,
    "integers, one feature": 1,
    "collinear columns": 1,
    "constant column": 2,
    "more features than samples": 4,
    "one feature": 1,
    "two samples": 1,
    "large mean": 2,
}
each_data = pytest.mark.parametrize(("name", "X"), degenerate_data().items(), ids=list(degenerate_data()))


def exact_rank(X: np.ndarray) -> int:
    """The rank of small integer data, centred without rounding as n X - 1 (1^T X)."""
    return int(np.linalg.matrix_rank(len(X) * X - X.sum(axis=0)))


def projector(basis: np.ndarray) -> np.ndarray:
    return basis @ basis.T


def batch_normalised(column: np.ndarray, gain: float, shift: float) -> np.ndarray:
    """Section 1 of the mathematics: g Pi z / ||Pi z|| + a 1/sqrt(n)."""
    centred = column - column.mean()
    return gain * centred / np.sqrt(np.sum(centred**2)) + shift / np.sqrt(len(column))


@each_data
def test_basis_is_orthonormal_and_ends_with_the_constant(name: str, X: np.ndarray):
    basis = whiten(X).basis
    assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() <= 1e-14
    assert basis[:, -1] == pytest.approx(1.0 / np.sqrt(len(X)), rel=1e-15)


@each_data
def test_rank_of_degenerate_data(name: str, X: np.ndarray):
    assert whiten(X).rank == RANKS[name]
    assert whiten(X).basis.shape == (len(X), RANKS[name] + 1)


@settings(max_examples=150)
@given(X=lattices(6, 5))
def test_rank_and_span_of_integer_data_are_exact(X: np.ndarray):
    whitening = whiten(X)
    assert whitening.rank == exact_rank(X)
    with_constant = np.column_stack([X, np.ones(len(X))])
    assert projector(whitening.basis) @ with_constant == pytest.approx(with_constant, abs=1e-13)
    assert np.abs(whitening.basis.T @ whitening.basis - np.eye(whitening.rank + 1)).max() <= 1e-14


@each_data
def test_components_and_singular_values_rebuild_the_centred_data(name: str, X: np.ndarray):
    whitening = whiten(X)
    rebuilt = (whitening.basis[:, :-1] * whitening.singular_values) @ whitening.components.T * whitening.scale
    assert rebuilt == pytest.approx(X - X.mean(axis=0), abs=1e-9 * np.ptp(X))
    assert np.all(np.diff(whitening.singular_values) <= 0.0)
    assert whitening.components.T @ whitening.components == pytest.approx(np.eye(whitening.rank), abs=1e-14)
    assert whitening.mean == pytest.approx(X.mean(axis=0), rel=1e-15, abs=1e-15)


@each_data
def test_batch_normalisation_is_the_basis_times_a_vector(name: str, X: np.ndarray):
    whitening = whiten(X)
    for seed in range(10):
        generator = np.random.default_rng(seed)
        w, gain, shift = generator.standard_normal(X.shape[1]), *generator.standard_normal(2)
        q = whitening.whitened_weights(w[None])[0]
        s = np.append(gain * q / np.linalg.norm(q), shift)
        assert whitening.basis @ s == pytest.approx(batch_normalised(X @ w, gain, shift), abs=2e-9)
        assert np.linalg.norm(s) == pytest.approx(np.hypot(gain, shift), rel=1e-12)


@each_data
def test_every_vector_of_the_basis_is_reached_by_raw_weights(name: str, X: np.ndarray):
    whitening = whiten(X)
    q = np.random.default_rng(0).standard_normal((5, whitening.rank))
    w = whitening.raw_weights(q)
    pre = X @ w.T
    assert pre - pre.mean(axis=0) == pytest.approx(whitening.basis[:, :-1] @ q.T, abs=1e-8)
    assert whitening.whitened_weights(w) == pytest.approx(q, rel=1e-12, abs=1e-12)


def test_raw_weights_carry_no_part_that_the_data_cannot_see():
    X = degenerate_data()["more features than samples"]
    whitening = whiten(X)
    w = np.random.default_rng(1).standard_normal((3, X.shape[1]))
    seen = whitening.raw_weights(whitening.whitened_weights(w))
    centred = X - X.mean(axis=0)
    assert centred @ seen.T == pytest.approx(centred @ w.T, abs=1e-13)
    assert np.all(np.linalg.norm(seen * whitening.scale, axis=1) < np.linalg.norm(w * whitening.scale, axis=1))


@each_data
def test_transform_of_the_training_data_is_the_basis(name: str, X: np.ndarray):
    whitening = whiten(X)
    assert whitening.transform(X) == pytest.approx(whitening.basis, abs=1e-8)


def test_transform_of_new_points_uses_the_training_statistics():
    X, new = np.array([[0.0], [1.0], [2.0], [5.0]]), np.array([[2.0], [-8.0]])
    spread = np.sqrt(14.0)
    expected = np.array([[0.0, 0.5], [-10.0 / spread, 0.5]])
    whitening = whiten(X)
    side = np.sign(whitening.components[0, 0])
    assert whitening.transform(new) * [side, 1.0] == pytest.approx(expected, abs=1e-15)


def test_transform_refuses_other_columns():
    with pytest.raises(InputError, match="X has 3 features, but the whitening was made with 2"):
        whiten(grid(3, 2)).transform(np.ones((2, 3)))


@settings(max_examples=150)
@given(exponents=st.lists(st.integers(-300, 300), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_units_of_the_columns_change_nothing(exponents: list[int], seed: int):
    X = np.random.default_rng(seed).standard_normal((6, 3))
    units = np.array([float(f"1e{exponent}") for exponent in exponents])
    plain, scaled = whiten(X), whiten(X * units)
    assert scaled.rank == plain.rank == 3
    assert projector(scaled.basis) == pytest.approx(projector(plain.basis), abs=1e-12)
    assert scaled.transform(X * units) == pytest.approx(scaled.basis, abs=1e-12)
    w = scaled.raw_weights(np.eye(3))
    pre = (X * units) @ w.T
    assert pre - pre.mean(axis=0) == pytest.approx(scaled.basis[:, :-1], abs=1e-12)


@pytest.mark.parametrize("powers", [[0, 40, -40], [900, -900, 3], [-1, -1, -1]], ids=str)
def test_powers_of_two_change_not_a_bit(powers: list[int]):
    X = np.random.default_rng(3).standard_normal((6, 3))
    plain, scaled = whiten(X), whiten(np.ldexp(X, powers))
    assert np.array_equal(plain.basis, scaled.basis)
    assert np.array_equal(np.ldexp(plain.scale, powers), scaled.scale)


@pytest.mark.parametrize("mean", [1e3, 1e6, 1e9])
def test_large_means_change_nothing(mean: float):
    X = np.ldexp(np.round(np.random.default_rng(4).standard_normal((8, 3)) * 2**20), -20)
    shifted = X + mean * np.array([1.0, -1.0, 0.5])
    assert projector(whiten(shifted).basis) == pytest.approx(projector(whiten(X).basis), abs=1e-15 * mean)
    assert whiten(shifted).rank == 3


def test_span_is_invariant_under_mixing_the_columns():
    X = np.random.default_rng(8).standard_normal((9, 3))
    mixed = X @ np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -3.0], [1.0, 0.0, 1.0]]) + [5.0, -1.0, 2.0]
    assert projector(whiten(mixed).basis) == pytest.approx(projector(whiten(X).basis), abs=1e-14)


def test_order_of_the_samples_only_permutes_the_rows():
    X = np.random.default_rng(9).standard_normal((7, 2))
    order = np.array([3, 1, 6, 0, 5, 2, 4])
    assert projector(whiten(X[order]).basis) == pytest.approx(projector(whiten(X).basis)[np.ix_(order, order)], abs=1e-14)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.0, 1e300, 1e-300])
def test_only_constant_columns_are_refused(constant: float):
    with pytest.raises(InputError, match=r"X has only constant columns.*Add a column that varies"):
        whiten(np.full((11, 3), constant))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0 / 3.0, 1e300, 1e-300])
def test_constant_columns_have_no_part_in_the_basis(constant: float):
    X = np.random.default_rng(10).standard_normal((11, 2))
    padded = np.insert(X, 1, constant, axis=1)
    assert projector(whiten(padded).basis) == pytest.approx(projector(whiten(X).basis), abs=1e-14)
    assert np.all(whiten(padded).components[1] == 0.0)


def test_rounding_does_not_make_a_constant_column_vary():
    x, rounded = np.random.default_rng(12).standard_normal(6), np.array([0.3, 0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3])
    assert np.ptp(rounded) > 0.0
    assert whiten(np.column_stack([x, rounded])).rank == 1
    with pytest.raises(InputError, match="only constant columns"):
        whiten(rounded[:, None])


@pytest.mark.parametrize(("tolerance", "rank"), [(1e-10, 2), (1e-5, 2), (1e-3, 1)])
def test_tolerance_drops_small_singular_values(tolerance: float, rank: int):
    x, noise = np.random.default_rng(11).standard_normal((2, 20))
    assert whiten(np.column_stack([x, x + 1e-4 * noise]), tolerance=tolerance).rank == rank


def test_rank_never_exceeds_the_samples_less_one():
    for seed in range(20):
        X = np.random.default_rng(seed).standard_normal((4, 40)) + 1e5
        assert whiten(X, tolerance=1e-30).rank == 3


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, np.nan])
def test_tolerance_lies_between_zero_and_one(tolerance: float):
    with pytest.raises(InputError, match="tolerance"):
        whiten(grid(3, 2), tolerance=tolerance)


@pytest.mark.parametrize("X", [np.ones((1, 2)), np.ones((3, 0)), np.ones(4), [[1.0, np.nan], [2.0, 3.0]], [["a"], ["b"]]], ids=str)
def test_unusable_data_are_refused_by_name(X: object):
    with pytest.raises(InputError, match="X"):
        whiten(X)


def test_data_are_left_untouched():
    X = grid(3, 2)
    whiten(X)
    assert np.array_equal(X, grid(3, 2))


def spread_data(samples: int = 30, seed: int = 3) -> np.ndarray:
    """Data whose columns have very different variances and a mean."""
    return np.random.default_rng(seed).standard_normal((samples, 5)) * [100.0, 30.0, 10.0, 1.0, 0.1] + [5.0, 0.0, -7.0, 1.0, 0.0]


def principal(X: np.ndarray, k: int) -> np.ndarray:
    """The k leading principal directions (d, k) of the centred data in their own units."""
    return np.linalg.svd(X - X.mean(axis=0))[2][:k].T


@pytest.mark.parametrize("k", [1, 3, 5])
def test_truncation_keeps_the_leading_directions_of_the_data_in_their_own_units(k: int):
    X = spread_data()
    whitening, V = whiten(X, rank=k), principal(X, k)
    assert whitening.rank == k
    assert projector(whitening.components) == pytest.approx(projector(V), abs=1e-12)
    assert projector(whitening.basis) == pytest.approx(projector(whiten(X @ V).basis), abs=1e-12)
    assert np.abs(whitening.basis.T @ whitening.basis - np.eye(k + 1)).max() <= 1e-14


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)], ids=str)
def test_gram_matrix_and_decomposition_truncate_alike(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    X = np.random.default_rng(0).standard_normal(shape) * np.linspace(1.0, 4.0, shape[1])
    for rank in (1, 4, 0.6):
        exact = whiten(X, rank=rank)
        monkeypatch.setattr("convexbn.whitening.GRAM_FROM", 1)
        monkeypatch.setattr("convexbn.whitening._by_decomposition", None)
        fast = whiten(X, rank=rank)
        monkeypatch.undo()
        assert fast.singular_values == pytest.approx(exact.singular_values, rel=1e-13)
        assert projector(fast.basis) == pytest.approx(projector(exact.basis), abs=1e-12)
        assert fast.energy == pytest.approx(exact.energy, rel=1e-13)
        assert fast.transform(X) == pytest.approx(fast.basis, abs=1e-13)


def test_directions_too_weak_for_a_gram_matrix_are_left_to_the_decomposition(monkeypatch: pytest.MonkeyPatch):
    X = np.random.default_rng(0).standard_normal((30, 12)) * np.logspace(0, -12, 12)
    exact = whiten(X, rank=5)
    monkeypatch.setattr("convexbn.whitening.GRAM_FROM", 1)
    assert np.array_equal(whiten(X, rank=5).basis, exact.basis)


@pytest.mark.parametrize(("share", "k"), [(0.5, 1), (0.95, 2), (0.999, 3), (0.999999, 4), (1.0 - 1e-12, 5)])
def test_a_share_of_the_variance_is_a_number_of_directions(share: float, k: int):
    X = spread_data(3000)
    whitening = whiten(X, rank=share)
    assert whitening.rank == k
    assert whitening.energy >= share
    variances = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
    assert whitening.energy == pytest.approx(variances[:k].sum() / variances.sum(), rel=1e-13)
    assert np.array_equal(whitening.basis, whiten(X, rank=k).basis)


@each_data
def test_more_directions_than_there_are_means_all_of_them(name: str, X: np.ndarray):
    whitening = whiten(X, rank=100)
    assert whitening.rank == RANKS[name]
    assert whitening.energy == 1.0
    assert projector(whitening.basis) == pytest.approx(projector(whiten(X).basis), abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_truncated_weights_run_on_the_raw_data(k: int):
    X = spread_data()
    whitening = whiten(X, rank=k)
    q = np.random.default_rng(0).standard_normal((6, k))
    w = whitening.raw_weights(q)
    pre = X @ w.T
    assert pre - pre.mean(axis=0) == pytest.approx(whitening.basis[:, :-1] @ q.T, abs=1e-12)
    assert whitening.whitened_weights(w) == pytest.approx(q, rel=1e-12)
    assert whitening.transform(X) == pytest.approx(whitening.basis, abs=1e-13)


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_truncation_minds_constant_columns_of_any_size(size: float):
    X = np.insert(spread_data(), 2, size, axis=1)
    whitening = whiten(X, rank=2)
    assert np.all(whitening.components[2] == 0.0)
    assert whitening.transform(X) == pytest.approx(whitening.basis, abs=1e-13)
    assert projector(whitening.basis) == pytest.approx(projector(whiten(spread_data(), rank=2).basis), abs=1e-13)


@pytest.mark.parametrize("unit", [1e150, 1e-150])
def test_one_unit_for_all_columns_changes_no_truncation(unit: float):
    X = spread_data()
    assert projector(whiten(unit * X, rank=2).basis) == pytest.approx(projector(whiten(X, rank=2).basis), abs=1e-13)


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.0, 1.5, -0.5, np.nan, True, "all", [3]], ids=str)
def test_rank_is_a_number_of_directions_or_a_share(rank: object):
    with pytest.raises(InputError, match="rank = "):
        whiten(grid(3, 2), rank=rank)


@pytest.mark.parametrize("weakest", [1e-2, 1e-6])
def test_tall_data_are_decomposed_as_lapack_does(weakest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Gram matrix where the weakest direction allows it, and by LAPACK where not: patches of images are tall."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((600, 3)) @ np.diag([1.0, 0.3, weakest]) @ generator.standard_normal((3, 3)) + 5.0
    tall = whiten(X)
    monkeypatch.setattr("convexbn.whitening.TALL", np.inf)
    usual = whiten(X)
    np.testing.assert_allclose(tall.singular_values, usual.singular_values, rtol=1e-9)
    signs = np.sign(np.sum(tall.basis * usual.basis, axis=0))
    np.testing.assert_allclose(tall.basis * signs, usual.basis, atol=1e-9 / weakest)
    np.testing.assert_allclose(tall.basis.T @ tall.basis, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(tall.transform(X), tall.basis, atol=1e-8)

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from problems import degenerate_data, lattices, listed_price

from convexbn.arrangements import Arrangements, enumerate_arrangements, sample_arrangements
from convexbn.pricing import Price, is_square, price_arrangements, price_dual, price_everywhere, price_square
from convexbn.whitening import whiten

each_data = pytest.mark.parametrize("X", degenerate_data().values(), ids=list(degenerate_data()))
one_dimensional = {name: X for name, X in degenerate_data().items() if whiten(X).rank == 1}
square = {n: np.random.default_rng(n).standard_normal((n, n + 1)) for n in (2, 3, 4, 5)}


def price(X: np.ndarray, v: np.ndarray) -> Price:
    return listed_price(whiten(X).basis, v)


def random_dual(X: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(len(X))


def worth(basis: np.ndarray, v: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """|v^T (U's)_+| for each column s, scaled to norm 1."""
    return np.abs(v @ np.maximum(basis @ (directions / np.linalg.norm(directions, axis=0)), 0.0))


def signed_worth(basis: np.ndarray, v: np.ndarray, found: Price) -> np.ndarray:
    """w v^T (U's)_+ of the neurons of a price, for one output."""
    worths: np.ndarray = found.outputs[:, 0] * (v @ np.maximum(basis @ found.directions.T, 0.0))
    return worths


def cone_optimum(basis: np.ndarray, v: np.ndarray, active: np.ndarray) -> float:
    """max |v^T D U's| over the cone (2D - I) U's >= 0 and the unit ball, by Clarabel."""
    s = cp.Variable(basis.shape[1])
    constraints = [cp.multiply(np.where(active, 1.0, -1.0), basis @ s) >= 0, cp.norm(s) <= 1]
    centre = (active * v) @ basis
    return max(cp.Problem(cp.Maximize(sign * centre @ s), constraints).solve(solver="CLARABEL") for sign in (1.0, -1.0))


@each_data
@pytest.mark.parametrize("seed", range(4))
def test_upper_and_lower_ends_agree(X: np.ndarray, seed: int):
    found = price(X, random_dual(X, seed))
    assert found.upper == pytest.approx(found.lower, rel=1e-6)
    assert found.upper >= found.lower


@each_data
def test_the_neuron_has_the_price_of_the_lower_end(X: np.ndarray):
    basis, v = whiten(X).basis, random_dual(X)
    found = price(X, v)
    assert np.linalg.norm(found.directions, axis=1) == pytest.approx(1.0, rel=1e-14)
    assert abs(found.outputs[0, 0]) == 1.0
    assert signed_worth(basis, v, found)[0] == pytest.approx(found.lower, rel=1e-14)


@each_data
def test_no_random_neuron_is_dearer(X: np.ndarray):
    basis, v = whiten(X).basis, random_dual(X, 1)
    draws = np.random.default_rng(2).standard_normal((basis.shape[1], 100_000))
    dearest, found = worth(basis, v, draws).max(), price(X, v)
    assert dearest <= found.upper
    assert dearest >= 0.9 * found.lower


@pytest.mark.parametrize("X", one_dimensional.values(), ids=list(one_dimensional))
@pytest.mark.parametrize("seed", range(5))
def test_one_dimension_against_a_fine_grid_of_angles(X: np.ndarray, seed: int):
    basis, v = whiten(X).basis, random_dual(X, seed)
    angle = np.linspace(0.0, 2.0 * np.pi, 200_001)
    dearest, found = worth(basis, v, np.stack([np.cos(angle), np.sin(angle)])).max(), price(X, v)
    assert dearest <= found.upper
    assert dearest == pytest.approx(found.upper, rel=1e-4)


def test_one_dimension_by_hand():
    """x = -1, 1 and V = (0, 1): the neuron that looks at the second sample alone, (U's)_+ = (0, 1), has worth 1."""
    found = price(np.array([[-1.0], [1.0]]), np.array([0.0, 1.0]))
    assert found.lower == pytest.approx(1.0, rel=1e-15)
    assert np.abs(found.directions[0]) == pytest.approx(np.sqrt([0.5, 0.5]))


@pytest.mark.parametrize("constant", [2.5, -2.5])
def test_constant_dual_points_want_the_constant_neuron(constant: float):
    X = np.random.default_rng(0).standard_normal((9, 2))
    found = price(X, np.full(9, constant))
    assert found.lower == pytest.approx(2.5 * 3.0, rel=1e-12)
    assert found.directions[0] == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)
    assert found.outputs.tolist() == [[np.sign(constant)]]


@each_data
def test_single_cells_against_clarabel(X: np.ndarray):
    basis, v = whiten(X).basis, random_dual(X, 3)
    active = enumerate_arrangements(basis).active
    for cell in active[np.random.default_rng(4).choice(len(active), min(len(active), 6), replace=False)]:
        assert price_arrangements(basis, v, cell[None]).upper == pytest.approx(cone_optimum(basis, v, cell), abs=1e-7)


@each_data
def test_all_cells_are_as_dear_as_the_dearest(X: np.ndarray):
    basis, v = whiten(X).basis, random_dual(X, 5)
    active = enumerate_arrangements(basis).active
    dearest = max(price_arrangements(basis, v, cell[None]).upper for cell in active)
    assert price(X, v).upper == pytest.approx(dearest, rel=1e-14)


@pytest.mark.parametrize("n", square)
@pytest.mark.parametrize("seed", range(8))
def test_closed_form_of_square_bases_against_the_cells(n: int, seed: int):
    basis, v = whiten(square[n]).basis, random_dual(square[n], seed)
    assert is_square(basis, v)
    closed, listed = price_square(basis, v), price(square[n], v)
    assert closed.upper == pytest.approx(listed.upper, rel=1e-7)
    assert closed.lower == pytest.approx(listed.lower, rel=1e-7)
    assert closed.directions == pytest.approx(listed.directions, abs=1e-6)
    assert np.array_equal(closed.outputs, listed.outputs)
    assert closed.upper >= closed.lower


@pytest.mark.parametrize("samples", [2, 3, 4, 6])
@settings(max_examples=50)
@given(st.integers(0, 10**6))
@example(11452)  # SciPy's nnls is wrong on one of its cones with 6 samples
def test_closed_form_pricing_agrees_with_all_arrangements_at_rank_n_minus_1(samples: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    basis, v = whiten(generator.standard_normal((samples, samples))).basis, generator.standard_normal(samples)
    everything = enumerate_arrangements(basis)
    assert len(everything) == 2**samples
    listed, closed = price_arrangements(basis, v, everything.active), price_square(basis, v)
    assert listed.upper == pytest.approx(closed.upper, rel=1e-6)
    assert listed.lower == pytest.approx(closed.lower, rel=1e-8)


@pytest.mark.parametrize(
    ("v", "worth"), [([3, 4, -12], -12), ([-3, -4, 1], -5), ([3, 4, 0], 5), ([3, 4, -4], 5), ([0, 0, -5], -5)], ids=str
)
def test_closed_form_by_hand(v: list[float], worth: float):
    found = price_square(whiten(square[3]).basis, np.array(v, dtype=float))
    assert found.outputs[0, 0] * found.lower == pytest.approx(worth, rel=1e-14)


def test_the_closed_form_is_for_one_output():
    basis = whiten(square[3]).basis
    assert is_square(basis, np.ones(3))
    assert not is_square(basis, np.ones((3, 2)))
    assert not is_square(whiten(square[3][:, :1]).basis, np.ones(3))


@pytest.mark.parametrize(
    ("X", "v"),
    [
        ([[0, 0], [1, 0], [0, 1], [0, 0]], [0, -2, 1, 0]),
        ([[0, 0], [1, 0], [1, 1], [1, 0], [0, 0], [1, 0]], [0, 2, -3, -2, 2, 0]),
        ([[2, 2, 0], [0, 2, 1], [1, 2, 0], [0, 0, 2]], [0, 0, 0, 2]),
    ],
    ids=["one pair", "two pairs", "no pair"],
)
def test_cells_where_the_nnls_of_scipy_errs(X: list[list[float]], v: list[float]):
    """scipy's issue 25389: nnls returns multipliers that are not the best ones, without a word."""
    basis, dual = whiten(X).basis, np.array(v, dtype=float)
    dearest = max(cone_optimum(basis, dual, cell) for cell in enumerate_arrangements(basis).active)
    found = price(np.array(X), dual)
    assert found.upper == pytest.approx(dearest, rel=1e-6)
    assert found.lower == pytest.approx(dearest, rel=1e-6)


@pytest.mark.parametrize("noise", [1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-5])
@pytest.mark.parametrize("seed", range(5))
def test_near_ties_are_priced_like_ties(noise: float, seed: int):
    tied = degenerate_data()["lattice with ties"]
    nearly = tied + noise * np.random.default_rng(seed).uniform(-1.0, 1.0, tied.shape)
    v, found = random_dual(tied, seed + 20), price(nearly, random_dual(tied, seed + 20))
    assert found.upper >= price(tied, v).lower - 50.0 * noise
    assert found.upper == pytest.approx(price(tied, v).upper, rel=1e-4 + 50.0 * noise)


@given(X=lattices(6, 3), seed=st.integers(0, 9), factor=st.sampled_from([1e-12, 1e-6, 1e-2, 3.0, 1e9]))
def test_price_is_homogeneous_and_even(X: np.ndarray, seed: int, factor: float):
    v = random_dual(X, seed)
    plain, scaled, mirrored = price(X, v), price(X, factor * v), price(X, -v)
    assert scaled.upper == pytest.approx(factor * plain.upper, rel=1e-8)
    assert mirrored.upper == pytest.approx(plain.upper, rel=1e-8)
    assert mirrored.lower == pytest.approx(plain.lower, rel=1e-7)


@settings(max_examples=100)
@given(data=st.data(), X=lattices(6, 3))
def test_prices_of_integer_duals_are_sound(data: st.DataObject, X: np.ndarray):
    basis = whiten(X).basis
    v = data.draw(arrays(np.float64, len(X), elements=st.integers(-2, 2).map(float)))
    found = price(X, v)
    draws = np.random.default_rng(0).standard_normal((basis.shape[1], 2000))
    assert worth(basis, v, draws).max() <= found.upper + 1e-15
    assert found.lower <= found.upper <= found.lower + 1e-7


@each_data
def test_zero_dual_point_is_worth_nothing(X: np.ndarray):
    found = price(X, np.zeros(len(X)))
    assert (found.upper, found.lower) == (0.0, 0.0)
    assert price_square(np.eye(4), np.zeros(4)).upper == 0.0


@each_data
@pytest.mark.parametrize("seed", range(3))
def test_pricing_without_a_list_encloses_the_price(X: np.ndarray, seed: int):
    basis, v = whiten(X).basis, random_dual(X, seed)
    listed, everywhere = price(X, v), price_everywhere(basis, v)
    assert everywhere.upper >= listed.lower
    assert everywhere.lower <= listed.upper
    assert everywhere.lower == pytest.approx(listed.lower, rel=1e-3)
    worths = signed_worth(basis, v, everywhere)
    assert sorted(everywhere.outputs[:, 0]) == [-1.0, 1.0]
    assert worths[0] == pytest.approx(everywhere.lower, rel=1e-12)
    assert worths[1] <= worths[0]


def test_a_sample_is_never_dearer_than_all():
    X = np.random.default_rng(6).standard_normal((10, 2))
    basis, v = whiten(X).basis, random_dual(X, 7)
    some = price_arrangements(basis, v, sample_arrangements(basis, 5).active)
    assert some.upper < price(X, v).upper


def test_price_grows_with_the_cells():
    X = np.random.default_rng(8).standard_normal((10, 2))
    basis, v = whiten(X).basis, random_dual(X, 9)
    active = enumerate_arrangements(basis).active
    prices = [price_arrangements(basis, v, active[:count]).upper for count in (1, 10, 40, len(active))]
    assert prices == sorted(prices)


def test_price_dual_chooses_by_the_rank():
    tall, wide = np.random.default_rng(10).standard_normal((7, 2)), square[4]
    v = random_dual(tall)
    listed = enumerate_arrangements(whiten(tall).basis)
    assert price_dual(whiten(tall).basis, v, listed).upper == price(tall, v).upper
    assert price_dual(whiten(wide).basis, v[:4], None).upper == price_square(whiten(wide).basis, v[:4]).upper
    assert price_dual(whiten(tall).basis, v, None).upper == price_everywhere(whiten(tall).basis, v).upper


def test_an_empty_sample_has_no_price():
    X = np.random.default_rng(11).standard_normal((6, 2))
    nothing = Arrangements(np.zeros((0, 6), dtype=bool), complete=False, possible=32)
    assert price_dual(whiten(X).basis, random_dual(X), nothing).upper == 0.0

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from problems import degenerate_data, grid, lattices
from scipy.optimize import linprog

from convexbn.arrangements import Arrangements, count_arrangements, enumerate_arrangements, sample_arrangements
from convexbn.validation import InputError
from convexbn.whitening import whiten

each_data = pytest.mark.parametrize("X", degenerate_data().values(), ids=list(degenerate_data()))


def general_position(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def arrangements_of(X: np.ndarray, **options: int) -> Arrangements:
    return enumerate_arrangements(whiten(X).basis, **options)


def patterns(arrangements: Arrangements) -> set[tuple[bool, ...]]:
    return {tuple(row) for row in arrangements.active.tolist()}


def is_separable(X: np.ndarray, pattern: tuple[bool, ...] | np.ndarray) -> bool:
    """Whether some (w, b) has w^T x_i + b >= 1 where the pattern is true and <= -1 elsewhere: a linear program on the raw data."""
    signs = np.where(pattern, 1.0, -1.0)
    rows = np.column_stack([X, np.ones(len(X))]) * signs[:, None]
    answer = linprog(np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-np.ones(len(X)), bounds=(None, None), method="highs")
    assert answer.status in (0, 2)
    return bool(answer.status == 0)


def separable_patterns(X: np.ndarray) -> set[tuple[bool, ...]]:
    return {pattern for pattern in product([False, True], repeat=len(X)) if is_separable(X, pattern)}


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [2, 3, 4, 6, 9, 12])
def test_general_position_reaches_the_bound_of_cover(n: int, d: int):
    rank = min(d, n - 1)
    expected = 2 * sum(comb(n - 1, k) for k in range(rank + 1))
    found = arrangements_of(general_position(n, d))
    assert len(found) == len(patterns(found)) == found.possible == expected == count_arrangements(n, rank)
    assert found.complete
    assert found.remark == ""


@pytest.mark.parametrize("n", [2, 3, 10, 50, 200])
def test_one_feature_gives_two_arrangements_a_sample(n: int):
    found = patterns(arrangements_of(general_position(n, 1)))
    order = np.argsort(general_position(n, 1)[:, 0])
    rank = np.argsort(order)
    steps = {tuple((rank >= k) == up) for k in range(n) for up in (True, False)}
    assert found == steps
    assert len(found) == 2 * n


@pytest.mark.parametrize(("n", "rank", "count"), [(2, 1, 4), (5, 0, 2), (7, 1, 14), (7, 2, 44), (500, 1, 1000), (4, 9, 16), (4, 3, 16)])
def test_count_by_hand(n: int, rank: int, count: int):
    assert count_arrangements(n, rank) == count


@pytest.mark.parametrize(("dimension", "count"), [(1, 4), (2, 14), (3, 104), (4, 1882)])
def test_vertices_of_a_cube_give_the_linear_threshold_functions(dimension: int, count: int):
    assert len(arrangements_of(grid(2, dimension))) == count


def planar_count(lines: list[int]) -> int:
    """Zaslavsky for points in the plane: 2 (1 + sum over the lines through two or more points of (points on it - 1))."""
    return 2 * (1 + sum(points - 1 for points in lines))


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        (grid(3, 2), [3] * 8 + [2] * 12),
        ([[0, 0], [1, 0], [2, 0], [0, 1]], [3] + [2] * 3),
        ([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]], [3, 3] + [2] * 9),
        ([[0, 0], [1, 1], [2, 2], [3, 3], [0, 1], [0, 2]], [4, 3] + [2] * 6),
        ([[1, 1], [-1, -1], [1, -1], [-1, 1], [0, 0]], [3, 3] + [2] * 4),
    ],
    ids=["3 x 3 grid", "three on a line", "2 x 3 grid", "four and three", "square and centre"],
)
def test_planar_points_on_common_lines(points: list[list[float]], lines: list[int]):
    X = np.array(points, dtype=float)
    assert sum(comb(k, 2) for k in lines) == comb(len(X), 2)
    found = arrangements_of(X)
    assert len(found) == planar_count(lines)
    assert found.remark == f"ties: {count_arrangements(len(X), 2)} in general position"


@pytest.mark.parametrize("features", [1, 2, 5])
def test_collinear_points_count_like_one_feature(features: int):
    x, direction = general_position(11, 1), general_position(1, features, seed=1)
    assert patterns(arrangements_of(x * direction + 3.0)) == patterns(arrangements_of(x))


def regions(normals: set[tuple[Fraction, ...]]) -> int:
    """The regions of hyperplanes through the origin by deletion and restriction, in rational numbers."""
    if not normals:
        return 1
    last = max(normals)
    rest = normals - {last}
    pivot = next(k for k, entry in enumerate(last) if entry)
    slopes = [entry / last[pivot] for entry in last]
    restricted = {tuple(x - row[pivot] * slope for k, (x, slope) in enumerate(zip(row, slopes, strict=True)) if k != pivot) for row in rest}
    return regions(rest) + regions({direction(row) for row in restricted})


def direction(row: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """The same hyperplane for every multiple: the first entry that is not 0 becomes 1."""
    lead = next(entry for entry in row if entry)
    return tuple(entry / lead for entry in row)


@pytest.mark.parametrize(
    ("n", "d", "side", "seed"), [(40, 1, 20, 0), (24, 2, 4, 1), (40, 2, 8, 2), (16, 3, 3, 3), (24, 3, 4, 4), (12, 4, 3, 5), (16, 5, 2, 6)]
)
def test_integer_data_against_deletion_and_restriction(n: int, d: int, side: int, seed: int):
    X = np.random.default_rng(seed).integers(0, side, (n, d))
    exact = regions({direction((Fraction(1), *map(Fraction, row))) for row in X.tolist()})
    assert len(arrangements_of(X)) == exact


def test_duplicates_share_their_sign_and_leave_the_rest_alone():
    X = general_position(6, 2)
    repeated = arrangements_of(X[[0, 1, 2, 3, 4, 5, 2, 0]])
    assert patterns(repeated) == {(*row, row[2], row[0]) for row in patterns(arrangements_of(X))}
    assert repeated.remark == "6 distinct rows of 8"


@each_data
def test_arrangements_come_in_opposite_pairs(X: np.ndarray):
    found = arrangements_of(X)
    assert patterns(found) == {tuple(not side for side in row) for row in patterns(found)}
    assert len(patterns(found)) == len(found)


@each_data
def test_degenerate_data_against_every_sign_vector(X: np.ndarray):
    assert patterns(arrangements_of(X)) == separable_patterns(X - X.mean(axis=0))


@pytest.mark.parametrize(("n", "d", "seed"), [(5, 1, 0), (7, 2, 1), (8, 3, 2), (6, 4, 3), (7, 6, 4)])
def test_random_data_against_every_sign_vector(n: int, d: int, seed: int):
    X = general_position(n, d, seed)
    assert patterns(arrangements_of(X)) == separable_patterns(X)


@given(X=lattices(6, 4))
def test_integer_data_against_every_sign_vector(X: np.ndarray):
    assert patterns(arrangements_of(X)) == separable_patterns(X)


@pytest.mark.parametrize("X", [grid(3, 3)[:20], general_position(14, 3), grid(2, 4)], ids=["part of a grid", "random", "cube"])
def test_larger_arrangements_have_an_interior_point_each(X: np.ndarray):
    found = arrangements_of(X)
    chosen = np.random.default_rng(0).choice(len(found), 60, replace=False)
    assert all(is_separable(X, row) for row in found.active[chosen])


def test_thin_cells_are_found():
    """Ten points near a circle with two of them almost equal: the cells between these two are thin."""
    angle = np.array([0.0, 1e-6, 0.7, 1.1, 2.0, 2.9, 3.3, 4.1, 5.0, 5.5])
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    assert len(arrangements_of(X)) == count_arrangements(10, 2)
    assert len(sample_arrangements(whiten(X).basis, 200)) < count_arrangements(10, 2)


@each_data
def test_units_and_shifts_of_the_columns_keep_the_arrangements(X: np.ndarray):
    scaled = np.ldexp(X, np.arange(X.shape[1]) - 3)
    assert patterns(arrangements_of(scaled)) == patterns(arrangements_of(X))


def test_order_of_the_samples_permutes_the_patterns():
    X, order = grid(3, 2), np.random.default_rng(1).permutation(9)
    assert patterns(arrangements_of(X[order])) == {tuple(np.array(row)[order]) for row in patterns(arrangements_of(X))}


@each_data
def test_samples_are_distinct_arrangements_of_the_enumeration(X: np.ndarray):
    basis = whiten(X).basis
    sample = sample_arrangements(basis, 10_000, seed=4)
    assert len(patterns(sample)) == len(sample)
    assert patterns(sample) <= patterns(enumerate_arrangements(basis))
    assert not sample.complete


def test_sampling_long_enough_finds_all_of_a_small_case():
    basis = whiten(general_position(5, 2)).basis
    assert patterns(sample_arrangements(basis, 1000)) == patterns(enumerate_arrangements(basis))


def test_samples_obey_their_count_and_seed():
    basis = whiten(general_position(40, 3)).basis
    one, same, other = (sample_arrangements(basis, 30, seed=seed) for seed in (7, 7, 8))
    assert len(one) == 30
    assert np.array_equal(one.active, same.active)
    assert not np.array_equal(one.active, other.active)
    assert one.seed == 7


def test_samples_have_an_interior_point_each():
    basis = whiten(general_position(8, 2)).basis
    assert all(is_separable(general_position(8, 2), row) for row in sample_arrangements(basis, 20).active)


def test_words_say_what_the_arrangements_are():
    basis = whiten(general_position(30, 2)).basis
    assert str(enumerate_arrangements(basis)) == "all 872 arrangements"
    assert str(sample_arrangements(basis, 5, seed=3)) == "a sample of 5 out of at most 872 arrangements (Gaussian, seed 3)"
    repeated = enumerate_arrangements(whiten(grid(3, 2)[[0, 0, 1, 2]]).basis)
    assert str(repeated) == "all 6 arrangements (3 distinct rows of 4)"


def test_astronomic_counts_are_readable():
    basis = whiten(general_position(400, 100)).basis
    sample = sample_arrangements(basis, 2)
    assert sample.possible == 2 * sum(comb(399, k) for k in range(101))
    assert f"at most {str(sample.possible)[0]}.{str(sample.possible)[1]}e{len(str(sample.possible)) - 1} " in str(sample)


def test_the_limit_refuses_with_advice():
    X = general_position(12, 2)
    assert len(arrangements_of(X, limit=134)) == 134
    with pytest.raises(InputError, match=r"may be 134 of them, more than the limit of 133: sample them \(arrangements=100\)"):
        arrangements_of(X, limit=133)


def test_the_limit_counts_distinct_rows():
    assert len(arrangements_of(general_position(6, 2)[np.arange(60) % 6], limit=32)) == 32


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "ten"])
def test_samples_need_a_count(count: object):
    with pytest.raises(InputError, match="count"):
        sample_arrangements(whiten(grid(3, 2)).basis, count)


@pytest.mark.parametrize(("samples", "rank", "name"), [(0, 1, "samples"), (3, -1, "rank"), (2.0, 1, "samples")])
def test_counts_need_whole_numbers(samples: object, rank: object, name: str):
    with pytest.raises(InputError, match=name):
        count_arrangements(samples, rank)

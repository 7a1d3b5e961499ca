"""Whitening block by block: equal to that of all rows at once, orthonormal to rounding, whatever the blocks are."""

from __future__ import annotations

import numpy as np
import pytest

from convexbn.streaming import whiten_stream
from convexbn.validation import InputError
from convexbn.whitening import whiten


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + 50.0


def of_blocks(X: np.ndarray, rank: float | None = None, count: int = 5):
    return whiten_stream(lambda: iter(np.array_split(X, count)), rank=rank)


DATA = {
    "tall": rows(300, 7),
    "as many directions as rows less one": rows(10, 20),
    "large mean": rows(60, 4) + 1e6,
    "units": rows(60, 3) * np.array([1e-200, 1.0, 1e200]),
    "constant column": np.column_stack([rows(50, 3), np.full(50, 0.1)]),
    "collinear columns": rows(50, 3) @ np.array([[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
    "weak direction": rows(50, 3) @ np.diag([1.0, 1.0, 1e-7]) @ np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0],
    "one row a block": rows(5, 2),
}


@pytest.mark.parametrize("rank", [None, 2, 0.9])
@pytest.mark.parametrize("name", DATA)
def test_it_is_the_whitening_of_all_rows(name: str, rank: float | None) -> None:
    X = DATA[name]
    if rank is not None and name == "units":
        pytest.skip("which directions lead depends on the units")
    one, other = of_blocks(X, rank), whiten(X, rank=rank)
    assert (one.rank, one.samples) == (other.rank, other.samples)
    assert one.basis.T @ one.basis == pytest.approx(np.eye(one.rank + 1), abs=1e-14)
    assert one.basis[:, -1] == pytest.approx(1.0 / np.sqrt(len(X)), abs=1e-14)
    assert one.basis @ (one.basis.T @ other.basis) == pytest.approx(other.basis, abs=1e-7)
    assert one.energy == pytest.approx(other.energy, rel=1e-12)
    weights = np.eye(one.rank)
    assert other.whitened_weights(one.raw_weights(weights)) @ other.basis[:, :-1].T == pytest.approx(one.basis[:, :-1].T, abs=1e-7)
    assert one.transform(X) == pytest.approx(one.basis, abs=1e-7)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_blocks_make_no_difference(count: int) -> None:
    X = rows(30, 4)
    assert of_blocks(X, 3, count).basis == pytest.approx(of_blocks(X, 3, 7).basis, abs=1e-12)


def test_what_can_not_be_whitened_is_refused() -> None:
    with pytest.raises(InputError, match=r"^X has only constant columns"):
        of_blocks(np.ones((12, 3)))
    with pytest.raises(InputError, match=r"^rank = 0"):
        of_blocks(rows(12, 3), 0)

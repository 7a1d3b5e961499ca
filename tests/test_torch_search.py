"""The search on a device takes the same steps as that of numpy, and says what it lacks."""

import numpy as np
import pytest

from convexbn import InputError, SlidingFrankWolfe, whiten
from convexbn.pricing import local_search, random_directions
from convexbn.solvers.torch_search import OnDevice

WIDTHS = (0.5, 0.1, 0.0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_search_by_torch_ends_where_that_of_numpy_does(outputs):
    generator = np.random.default_rng(outputs)
    basis = whiten(generator.standard_normal((120, 5))).basis
    v, starts = generator.standard_normal((120, outputs)), random_directions(30, 6, (0,))
    expected, worths = local_search(basis, v, starts, widths=WIDTHS)
    found = OnDevice(basis, "cpu", "float64")(v, starts, WIDTHS)
    assert found == pytest.approx(expected, abs=1e-6)
    single = OnDevice(basis, "cpu")(v, starts, WIDTHS)
    assert single.dtype == np.float64
    assert np.linalg.norm(v.T @ np.maximum(basis @ single.T, 0.0), axis=0).max() == pytest.approx(worths.max(), rel=1e-5)
    assert OnDevice(basis, "cpu")(v, starts[:0], WIDTHS).shape == (0, 6)


def test_a_vanishing_dual_point_gives_no_nan():
    basis = whiten(np.arange(10.0)[:, None] ** 2).basis
    found = OnDevice(basis, "cpu")(np.zeros((10, 1)), random_directions(3, 2, (0,)), WIDTHS)
    assert np.isfinite(found).all()


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="device = 'cuda:99'"):
        SlidingFrankWolfe(device="cuda:99")

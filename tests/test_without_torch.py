"""The smallest installation, without PyTorch and matplotlib: what needs them says what to install, and what doesn't works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import convexbn
from convexbn import (
    GatedNetwork,
    InputError,
    SlidingFrankWolfe,
    certify,
    fit_convex_bn,
    fit_gated_bn,
    fit_path,
    from_torch,
    random_layers,
    to_torch,
    whiten,
)

x = np.random.default_rng(0).standard_normal((60, 1))
y = np.abs(x[:, 0]) - 0.5 * x[:, 0]
FIT = fit_convex_bn(x, y, proof_seconds=0.0)
GATED = GatedNetwork(whiten(x), np.eye(2), np.zeros((2, 2, 1)))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: to_torch(FIT.network),
        FIT.to_torch,
        GATED.to_torch,
        lambda: from_torch(None, x),
        lambda: random_layers(x, [3]),
        lambda: fit_gated_bn(x, y, gates=3),
        lambda: fit_convex_bn(x, y, arrangements=100, solver="active set"),
        lambda: SlidingFrankWolfe(device="cuda"),
        lambda: certify(x, y, FIT.network, beta=1.0, device="cuda"),
    ],
)
def test_what_needs_pytorch_says_how_to_get_it(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"^PyTorch is missing, which .* needs: pip install 'convexbn\[torch\]'"):
        call()


def test_pictures_say_what_to_install() -> None:
    with pytest.raises(InputError, match=r"matplotlib is missing.*convexbn\[plot\]"):
        fit_path(x, y, betas=2).plot()


def test_the_solver_that_is_chosen_needs_no_pytorch() -> None:
    """Where the active set would be best, the solver that needs no list takes its place."""
    assert FIT.solution.solver == "active set"
    fit = fit_convex_bn(x, y)
    assert fit.solution.solver == "sliding Frank-Wolfe"
    assert fit.certificate.objective == pytest.approx(FIT.certificate.objective, rel=1e-5)
    assert fit.certificate.accepts(1e-3)
    assert fit_path(x, y, betas=2).objectives[1] < y @ y / 2


def test_modules_are_attributes_and_training_says_what_it_needs() -> None:
    assert convexbn.datasets.ImageData.__module__ == "convexbn.datasets.images"
    script = "import sys; sys.modules['torch'] = None; import convexbn; convexbn.training"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "ImportError: convexbn.training needs PyTorch: pip install 'convexbn[torch]'" in answer.stderr

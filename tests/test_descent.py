"""The joint descent: its gradient, the same by numpy and by PyTorch, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from convexbn import SlidingFrankWolfe, Squared, threads, whiten
from convexbn.patches import NO_POOLING, Pooling
from convexbn.program import Program
from convexbn.solvers import descent, rounds, torch_layer
from convexbn.solvers.descent import LayerOnCPU, slide
from convexbn.solvers.torch_layer import LayerOnDevice


def data(outputs: int, pooling: Pooling) -> tuple[np.ndarray, ...]:
    """A basis of 20 samples, targets, inner and outer weights of five neurons, and kinks as wide as their activations."""
    generator = np.random.default_rng(outputs)
    basis = whiten(generator.standard_normal((20 * pooling.patches, 4))).basis
    y = generator.standard_normal((20, outputs))
    return basis, y, generator.standard_normal((5, 5)), generator.standard_normal((5, outputs)), np.linspace(0.01, 0.3, 5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_threads_change_no_bit(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    basis, y, inner, outer, _ = data(outputs, NO_POOLING)
    monkeypatch.setattr(descent, "BLOCK", 35)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    ends = []
    for large in (threads.LARGE, 1):
        monkeypatch.setattr(threads, "LARGE", large)
        ends.append(slide(LayerOnCPU(basis), y, inner, outer, 0.1, Squared(), 0.3, steps=20))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


POOLINGS = [NO_POOLING, Pooling(3, 1.0), Pooling(3, 1.0 / 3.0)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_slopes_are_derivatives(outputs: int, pooling: Pooling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences of the loss, along random directions, in blocks of a few rows."""
    basis, y, inner, outer, kinks = data(outputs, pooling)
    monkeypatch.setattr(descent, "BLOCK", 35)
    layer = LayerOnCPU(basis, pooling)

    def value(a: np.ndarray, v: np.ndarray) -> float:
        total = 0.0

        def respond(samples: slice, predictions: np.ndarray) -> np.ndarray:
            nonlocal total
            total += 0.5 * float(np.sum((predictions - y[samples]) ** 2))
            return predictions - y[samples]

        layer.slopes(a, v, kinks, respond)
        return total

    inner_slope, outer_slope = layer.slopes(inner, outer, kinks, lambda samples, f: f - y[samples])
    generator = np.random.default_rng(7)
    for _ in range(5):
        da, dv = 1e-6 * generator.standard_normal(inner.shape), 1e-6 * generator.standard_normal(outer.shape)
        expected = float(np.vdot(inner_slope, da) + np.vdot(outer_slope, dv))
        assert (value(inner + da, outer + dv) - value(inner - da, outer - dv)) / 2.0 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_layer_by_torch_is_that_of_numpy(outputs: int, pooling: Pooling, monkeypatch: pytest.MonkeyPatch) -> None:
    basis, y, inner, outer, kinks = data(outputs, pooling)
    monkeypatch.setattr(torch_layer, "NUMBERS", 35)

    def respond(samples: slice, predictions: np.ndarray) -> np.ndarray:
        assert predictions.dtype == np.float64
        gradient: np.ndarray = np.tanh(predictions - y[samples])
        return gradient

    for precision, accuracy in (("float64", 1e-13), ("float32", 1e-5)):
        expected = LayerOnCPU(basis, pooling).slopes(inner, outer, kinks, respond)
        found = LayerOnDevice(basis.astype(precision), "cpu", pooling).slopes(inner, outer, kinks, respond)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, rtol=accuracy, atol=accuracy)


def test_a_run_with_descent_by_torch_ends_at_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    basis, y = whiten(generator.standard_normal((30, 2))).basis, np.eye(2)[np.arange(30) % 2]
    program = Program(basis, y, Squared(), 0.5, None)
    expected = SlidingFrankWolfe(tolerance=1e-4).solve(program).trace[-1]
    monkeypatch.setattr(rounds, "LayerOnCPU", lambda basis, pooling: LayerOnDevice(basis, "cpu", pooling))
    assert SlidingFrankWolfe(tolerance=1e-4).solve(program).trace[-1].objective == pytest.approx(expected.objective, rel=1e-5)


def test_descent_on_one_linear_neuron_is_its_closed_form() -> None:
    """All samples on one side of the kink: min ||u a v - y||^2 / 2 + beta |a| |v| shrinks the projection of y by beta."""
    ones = np.full((16, 1), 0.25)
    y = ones @ np.array([[3.0, -4.0]])
    directions, outputs = slide(LayerOnCPU(ones), y, np.ones((1, 1)), np.array([[1.0, 1.0]]), 0.5, Squared(), 1e-3)
    np.testing.assert_allclose(directions, [[1.0]])
    np.testing.assert_allclose(outputs, 0.9 * np.array([[3.0, -4.0]]), rtol=1e-6)

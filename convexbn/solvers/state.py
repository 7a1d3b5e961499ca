"""The state of a run of sliding Frank-Wolfe: its neurons, the best of them, the best dual point, and its checkpoint."""

from __future__ import annotations

import os
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np

from convexbn.checkpoint import load_checkpoint, save_checkpoint
from convexbn.losses import Loss, of_unit_size
from convexbn.program import Program
from convexbn.smoothing import Smoothed, smooth
from convexbn.solution import Round, relative_gap, starting_neurons
from convexbn.validation import FloatArray

# A loss with kinks is replaced by its envelope of this width, in the unit of the predictions; multipliers take the smoothing away.
ENVELOPE = 0.3


class Neurons(NamedTuple):
    """Directions (m, r+1) and outputs (m, C), replaced together: an interrupt never finds one without the other."""

    directions: FloatArray
    outputs: FloatArray

    def take(self, rows: np.ndarray) -> Neurons:
        """Some of them."""
        return Neurons(self.directions[rows], self.outputs[rows])


class State:
    """A program with targets of unit size, (n, C), and what a run knows of it.

    `neurons` are the present ones, `best` those of the objective `lowest`; `dual` is the V of the best estimated `bound`; `pool`
    holds directions that searches found; `shift` is that of the envelope of a loss with kinks; `draws` counts searches, `width` is
    that of the kinks of ReLU, `trace` a record of rounds.
    """

    def __init__(self, program: Program, width: float, warm_start: tuple[FloatArray, FloatArray] | None) -> None:
        self.basis, self.pooling = program.basis, program.pooling
        self.y, self.loss, self.beta, self.unit = of_unit_size(program.y.reshape(len(program.y), -1), program.loss, program.beta)
        directions, outputs = starting_neurons(warm_start, program)
        self.neurons = Neurons(directions, outputs / self.unit)
        self.best, self.lowest = self.neurons, self.objective(self.neurons)
        self.dual, self.bound = -self.loss.gradient(np.zeros_like(self.y), self.y), -np.inf
        self.pool = np.zeros((0, self.basis.shape[1]))
        self.shift = np.zeros_like(self.y)
        self.draws, self.width = 0, width
        self.trace: list[Round] = []

    def save(self, file: str | os.PathLike[str], run: str) -> None:
        """Write the checkpoint of a run with that fingerprint."""
        arrays = {"neurons": self.neurons, "best": self.best}
        halves = {f"{name}_{half}": array for name, pair in arrays.items() for half, array in pair._asdict().items()}
        numbers = {"lowest": self.lowest, "bound": self.bound, "draws": self.draws, "width": self.width}
        trace = np.array([astuple(entry) for entry in self.trace])
        save_checkpoint(file, run, {**halves, **numbers, "dual": self.dual, "pool": self.pool, "shift": self.shift, "trace": trace})

    def load(self, file: str | os.PathLike[str], run: str) -> None:
        """Go on from a checkpoint, where there is one."""
        saved: dict[str, Any] | None = load_checkpoint(file, run)
        if saved is not None:
            self.neurons, self.best = (Neurons(saved[f"{name}_directions"], saved[f"{name}_outputs"]) for name in ("neurons", "best"))
            self.lowest, self.bound, self.width = (float(saved[name]) for name in ("lowest", "bound", "width"))
            self.draws, self.dual, self.pool, self.shift = int(saved["draws"]), saved["dual"], saved["pool"], saved["shift"]
            self.trace = [Round(objective, gap, int(neurons), seconds) for objective, gap, neurons, seconds in saved["trace"].tolist()]

    def features(self, directions: FloatArray) -> FloatArray:
        """p (U'S)_+, shape (n, m)."""
        return self.pooling.pool(np.maximum(self.basis @ directions.T, 0.0))

    def predictions(self, neurons: Neurons) -> FloatArray:
        """Of those neurons, shape (n, C)."""
        values: FloatArray = self.features(neurons.directions) @ neurons.outputs
        return values

    def objective(self, neurons: Neurons, loss: Loss | None = None) -> float:
        """With the loss itself, or with another one."""
        value = (loss or self.loss).value(self.predictions(neurons), self.y)
        return value + self.beta * float(np.linalg.norm(neurons.outputs, axis=1).sum())

    @property
    def smooth_loss(self) -> Loss:
        """The loss, or its envelope where it has kinks."""
        return smooth(self.loss, ENVELOPE, self.shift)

    def gradient(self) -> FloatArray:
        """V = -grad L at the present predictions."""
        return -self.smooth_loss.gradient(self.predictions(self.neurons), self.y)

    def multiply(self) -> None:
        """A step of the method of multipliers: at the optimum of a loss with kinks its envelope is shifted by its own gradient."""
        if isinstance(envelope := self.smooth_loss, Smoothed):
            self.shift = envelope.next_shift(self.predictions(self.neurons), self.y)

    def accept(self, neurons: Neurons) -> None:
        """Go on from these neurons, and remember them where they are the best so far."""
        objective = self.objective(neurons)
        self.neurons = neurons
        if objective <= self.lowest:
            self.best, self.lowest = neurons, objective

    def believe(self, v: FloatArray, worth: float) -> None:
        """Keep V and the bound that it has if `worth` is h(V), where that is the best so far."""
        t = min(1.0, self.beta / worth) if worth > 0 else 1.0
        bound = -self.loss.conjugate(-t * v, self.y)
        if bound > self.bound:
            self.bound, self.dual = bound, v

    @property
    def gap(self) -> float:
        """Estimated, of the best neurons, at most 1."""
        return min(1.0, relative_gap(self.lowest, self.bound))

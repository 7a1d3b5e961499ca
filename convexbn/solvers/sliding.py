"""Sliding Frank-Wolfe: the program over all arrangements, by pricing, amplitudes and descent on the neurons themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convexbn.losses import Loss
from convexbn.network import merge
from convexbn.pricing import evolve, random_directions
from convexbn.program import Program
from convexbn.smoothing import Smoothed
from convexbn.solution import Round, Solution, Status
from convexbn.solvers.descent import fit_amplitudes, slide
from convexbn.validation import FloatArray, check_count, check_positive

# How rough a round may be: the width of the smoothed kinks of ReLU (and of the loss, where it has any) shrinks from
# FIRST_WIDTH by SHRINK a round down to LAST_WIDTH. Descent on the kinked objective itself jams on the first kink it meets.
FIRST_WIDTH, SHRINK, LAST_WIDTH = 0.3, 0.5, 1e-4
# New neurons are taken from the best of the search; two with a larger cosine count as one.
COSINE = 0.99
NEW = 64
PRICINGS = 3  # rounds of pricing and amplitudes before each slide
GENERATIONS = 2  # of each search
CONFIRM = 4  # times as many starts, and three times as many generations, before the gap is believed


@dataclass(frozen=True)
class SlidingFrankWolfe:
    """Solve the program over ALL arrangements, without listing them, to an estimated relative gap.

        min  L( (U'S)_+ W, y ) + beta sum_j ||s_j|| ||w_j||      over neurons S (m, r+1), W (m, C), of every width m

    Rounds of (a) pricing: many local searches for neurons with h(s) = ||V^T (U's)_+|| > beta, V = -grad L; (b) amplitudes: with
    the directions fixed, a convex group lasso for W; (c) sliding: descent on S and W together, then merging and pruning. The
    gap is estimated, as the searches may miss the maximum of h: `certify` proves what can be proved.

    Source: Denoyelle, Duval, Peyre and Soubies 2019 (sliding Frank-Wolfe), Bach 2017 (conditional gradient for networks).

    Attributes
    ----------
    tolerance : of the estimated relative gap
    rounds : at most so many
    seconds : and at most for so long
    starts : random starts of each pricing; the present neurons start too
    seed : of the starts
    warm_start : directions (m, r+1) and outputs (m, C) to begin with, as `convexbn.neurons_of` reads them from a network
    verbose : print a line a round
    """

    tolerance: float = 1e-4
    rounds: int = 60
    seconds: float = 600.0
    starts: int = 64
    seed: int = 0
    warm_start: tuple[FloatArray, FloatArray] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.rounds, "rounds")
        check_count(self.starts, "starts")
        check_count(self.seed, "seed", 0)

    def solve(self, program: Program) -> Solution:
        """The best neurons found, with the dual point of the best estimated bound; an interrupt returns what is there."""
        start = time.perf_counter()
        unit = program.loss.scale(program.y)
        state = _State(program, unit, self)
        status, trace = Status.LIMIT, []
        try:
            for objective, gap in state.progress():
                seconds = time.perf_counter() - start
                trace.append(Round(objective * unit**2, gap, len(state.outputs), seconds))
                if self.verbose:
                    _print(len(trace), trace[-1])
                if gap <= self.tolerance:
                    status = Status.OPTIMAL
                    break
                if seconds > self.seconds or len(trace) >= self.rounds:
                    break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        return Solution(
            state.directions,
            unit * state.outputs,
            status,
            "sliding Frank-Wolfe",
            dual=unit * (state.dual[:, 0] if program.y.ndim == 1 else state.dual),
            iterations=len(trace),
            solve_seconds=time.perf_counter() - start,
            trace=tuple(trace),
        )


class _State:
    """The neurons of a run and its best dual point, for targets of unit size."""

    def __init__(self, program: Program, unit: float, settings: SlidingFrankWolfe) -> None:
        self.basis = program.basis
        self.y = program.y.reshape(len(program.y), -1) / unit
        self.loss: Loss = program.loss.rescaled(unit)
        self.beta = program.beta / unit
        self.settings = settings
        width, outputs = self.basis.shape[1], self.y.shape[1]
        self.directions, self.outputs = np.zeros((0, width)), np.zeros((0, outputs))
        if settings.warm_start is not None:
            self.directions, self.outputs = settings.warm_start[0], settings.warm_start[1] / unit
        self.dual = -self.loss.gradient(np.zeros_like(self.y), self.y)
        self.bound = -np.inf
        self.draws = 0

    def progress(self) -> Iterator[tuple[float, float]]:
        """Run rounds for ever, yielding the objective and the estimated relative gap after each."""
        width = FIRST_WIDTH
        while True:
            for _ in range(PRICINGS):
                objective = self.objective()
                found, worths = self.price(self.gradient(width), self.settings.starts, GENERATIONS)
                if self.gap(objective) <= self.settings.tolerance:
                    break
                self.insert(found, worths, width)
            if self.gap(self.objective()) <= self.settings.tolerance:
                self.confirm()
            yield self.objective(), self.gap(self.objective())
            self.slide(width)
            width = max(LAST_WIDTH, SHRINK * width)

    def objective(self) -> float:
        predictions = np.maximum(self.basis @ self.directions.T, 0.0) @ self.outputs
        return self.loss.value(predictions, self.y) + self.beta * float(np.linalg.norm(self.outputs, axis=1).sum())

    def gap(self, objective: float) -> float:
        return max(0.0, objective - self.bound) / objective if objective > 0 else 0.0

    def smooth_loss(self, width: float) -> Loss:
        return self.loss if np.isfinite(self.loss.smoothness) else Smoothed(self.loss, width)

    def gradient(self, width: float) -> FloatArray:
        """V = -grad L at the present predictions."""
        predictions = np.maximum(self.basis @ self.directions.T, 0.0) @ self.outputs
        return -self.smooth_loss(width).gradient(predictions, self.y)

    def price(self, v: FloatArray, starts: int, generations: int) -> tuple[FloatArray, FloatArray]:
        """Search from random directions and the present neurons, and keep V where its estimated bound is the best so far."""
        self.draws += 1
        seed = (self.settings.seed, self.draws)
        random = np.concatenate([random_directions(starts, self.basis.shape[1], seed), self.directions])
        found, worths = evolve(self.basis, v, random, seed=seed, children=starts, generations=generations)
        bound = self.dual_value(v, float(np.max(worths)))
        if bound > self.bound:
            self.bound, self.dual = bound, v
        return found, worths

    def dual_value(self, v: FloatArray, worth: float) -> float:
        t = min(1.0, self.beta / worth) if worth > 0 else 1.0
        return -self.loss.conjugate(-t * v, self.y)

    def confirm(self) -> None:
        """Search again, with more starts, before the bound of the best dual point is believed."""
        self.bound = -np.inf
        found, worths = self.price(self.dual, CONFIRM * self.settings.starts, 3 * GENERATIONS)
        if self.gap(self.objective()) > self.settings.tolerance:
            self.insert(found, worths, LAST_WIDTH)

    def insert(self, found: FloatArray, worths: FloatArray, width: float) -> None:
        """Add the best distinct directions, solve for all amplitudes, and drop those that get none."""
        threshold = self.beta + 0.1 * max(0.0, float(np.max(worths)) - self.beta)
        chosen = _distinct(found, worths, threshold)
        self.directions = np.concatenate([self.directions, found[chosen]])
        outputs = np.concatenate([self.outputs, np.zeros((len(chosen), self.y.shape[1]))])
        features = np.maximum(self.basis @ self.directions.T, 0.0)
        self.outputs = fit_amplitudes(features, self.y, outputs, self.beta, self.smooth_loss(width))
        self.keep(np.linalg.norm(self.outputs, axis=1) > 0)

    def slide(self, width: float) -> None:
        """Descend on directions and outputs together, then merge neurons as far as that costs little of the gap."""
        if not len(self.outputs):
            return
        before = self.objective()
        neurons = slide(self.basis, self.y, self.directions, self.outputs, self.beta, self.smooth_loss(width), width)
        former = self.directions, self.outputs
        self.directions, self.outputs = neurons
        if self.objective() > before * (1.0 + width):
            self.directions, self.outputs = former
        objective = self.objective()
        allowed = objective * (1.0 + 0.02 * max(1e-6, min(1.0, self.gap(objective))))
        unmerged = self.directions, self.outputs
        for angle in (0.2, 0.05, 0.01, 1e-4):
            self.directions, self.outputs = merge(*unmerged, angle=angle, smallest=1e-8)
            if self.objective() <= allowed:
                return
        self.directions, self.outputs = unmerged

    def keep(self, rows: np.ndarray) -> None:
        self.directions, self.outputs = self.directions[rows], self.outputs[rows]


def _distinct(directions: FloatArray, worths: FloatArray, threshold: float) -> list[int]:
    """Indices of the best directions above the threshold, no two with a cosine above COSINE."""
    chosen: list[int] = []
    for j in np.argsort(-worths):
        if worths[j] <= threshold or len(chosen) >= NEW:
            break
        if not chosen or float(np.max(directions[chosen] @ directions[j])) < COSINE:
            chosen.append(int(j))
    return chosen


def _print(number: int, entry: Round) -> None:
    from rich.console import Console

    Console(stderr=True).print(
        f"convexbn: round {number}, objective {entry.objective:.8g}, estimated gap {entry.gap:.1e}, "
        f"{entry.neurons} neurons, {entry.seconds:.1f} s"
    )

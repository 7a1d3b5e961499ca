"""The rows of `cifar_table.py`, a function a table. The grids are small: they were searched on two cores."""

from dataclasses import replace
from itertools import chain
from typing import Any

from cifar_table_convex import all_arrangements, closed_form, gated, sampled_arrangements
from cifar_table_data import Row, Settings
from cifar_table_descent import by_sgd, deep, on_the_program

CONVEX = all_arrangements, closed_form, gated, sampled_arrangements
ON_DEVICE = by_sgd, deep, gated, on_the_program  # the others take the CPU
WHOLE, PART, SQUARE = "Two layers, all images", "Two layers, a part of the images", "n <= d, every depth"
PATCHES, ALL_PATCHES = "Patches, averaged", "Patches, averaged, all images"

SGD = {"batch": 250, "epochs": 12, "directions": 1000, "loss": "softmax"}
GATED = {"gates": 200, "lean": 0.4, "loss": "squared", "tolerance": 1e-2, "iterations": 40}
RELU = {"tolerance": 1e-2, "rounds": 4, "seconds": 600.0, "proof_seconds": 1.0}
CUT = {"patch": 8, "stride": 8}
SMALL: dict[str, Any] = {"samples": 2000, "choice_samples": 1800, "seeds": 3}
SHORT = {"batch": 100, "epochs": 15}
FEWER = 10, 14, 20  # steps of the gated program: where they end is a regulariser


def grid(**choices: tuple[Any, ...]) -> tuple[Settings, ...]:
    """All combinations."""
    settings: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        settings = [{**others, name: value} for others in settings for value in values]
    return tuple(settings)


def whole_images(gates: int) -> list[Row]:
    """Two layers on all images, the truncated gated program with so many gates."""
    truncated = "convex, gated, truncated"
    choices = grid(loss=("squared", "softmax"), rank=(100, 150), fraction=(0.03, 0.06)) + grid(
        loss=("softmax",), rank=(150, 200), fraction=(0.1,)
    )
    choices += grid(loss=("softmax",), rank=(200,), fraction=(0.06,))
    choices += grid(loss=("softmax",), rank=(200,), fraction=(0.06,), iterations=FEWER)
    plain = {**SGD, "width": 1000, "loss": "squared"}
    descent = (
        grid(width=(1000,), rate=(0.03, 0.1, 0.3), decay=(1e-4, 1e-3))
        + grid(width=(1000, 2000, 500), rate=(0.03, 0.1), decay=(3e-3,))
        + grid(width=(2000, 500), rate=(0.03, 0.1), decay=(1e-3,))
        + grid(width=(2000,), rate=(0.1,), decay=(1e-3,), epochs=(24, 36))
    )
    program = {**GATED, "directions": 1000}
    untruncated = {**GATED, "gates": 20, "loss": "softmax", "iterations": 20, "rank": None}
    return [
        Row(WHOLE, "SGD, cross-entropy", by_sgd, descent, SGD, seeds=3),
        Row(WHOLE, "SGD, squared loss", by_sgd, grid(rate=(0.003, 0.01, 0.03), decay=(1e-3,)), plain, seeds=3),
        Row(WHOLE, "convex, gated, all directions", gated, grid(fraction=(0.1, 0.3)), untruncated, choice_samples=15_000, seeds=3),
        Row(WHOLE, truncated, gated, choices, {**program, "gates": 300}, {"gates": gates}, seeds=3),
        Row(WHOLE, f"{truncated}, half the gates", gated, choice_of=truncated, shared=program, final={"gates": gates // 2}, seeds=3),
        *mirrored_images({**program, "gates": 300, "loss": "softmax"}, gates // 2),
    ]


def mirrored_images(program: Settings, gates: int) -> list[Row]:
    """The same on images and their mirror images; half the gates, as each takes twice the time."""
    wide = grid(width=(2000,), rate=(0.1,), decay=(1e-3,), epochs=(12, 24))
    narrow = grid(width=(1000,), rate=(0.03,), decay=(3e-3,), epochs=(12, 24))
    choices = grid(rank=(200,), fraction=(0.06,), iterations=(*FEWER, 40))
    both = {"mirrored": True}
    return [
        Row(WHOLE, "SGD, cross-entropy, mirrored", by_sgd, wide + narrow, {**SGD, **both}, seeds=2),
        Row(WHOLE, "convex, gated, truncated, mirrored", gated, choices, {**program, **both}, {"gates": gates}, seeds=2),
    ]


def part_of_images() -> list[Row]:
    """Two layers on 2,000 images, among them ReLU networks at their optimum."""
    relu, exact = "convex, ReLU, all arrangements", {"tolerance": 1e-3, "rounds": 20}
    adam = {"width": 100, "rate": 0.1, "epochs": 1000}
    both = grid(rank=(20, 40, 80), fraction=(0.05, 0.1))
    descent = grid(width=(1000, 2000, 500), rate=(0.03, 0.1), decay=(1e-3, 1e-2))
    everything = {**GATED, "gates": 50, "rank": None}
    each, sampled = "convex, ReLU, sampled, one against the rest", grid(rank=(40,), fraction=(0.1, 0.2))
    return [
        Row(PART, "SGD, cross-entropy", by_sgd, descent, {**SGD, **SHORT}, **SMALL),
        Row(PART, "convex, gated, all directions", gated, grid(fraction=(0.1, 0.2)), everything, **SMALL),
        Row(PART, "convex, gated, truncated", gated, both, GATED, **SMALL),
        Row(PART, relu, all_arrangements, both, RELU, exact, **SMALL),
        Row(PART, "Adam on the same objective", on_the_program, choice_of=relu, shared=adam, **SMALL),
        Row(PART, each, sampled_arrangements, sampled, {"arrangements": 50}, {"arrangements": 200}, **SMALL),
    ]


def patches() -> list[Row]:
    """One layer of patches on 2,000 images."""
    descent = grid(width=(1000,), rate=(0.03, 0.1), decay=(1e-4, 1e-3)) + grid(width=(2000, 500), rate=(0.1,), decay=(1e-4, 1e-3))
    relu = grid(rank=(15, 30), fraction=(0.01, 0.02))
    gates = {**GATED, **CUT, "lean": 0.0}
    return [
        Row(PATCHES, "SGD on patches, cross-entropy", by_sgd, descent, {**SGD, **SHORT, **CUT}, **SMALL),
        Row(PATCHES, "convex, ReLU on patches, all arrangements", all_arrangements, relu, {**RELU, **CUT}, **SMALL),
        Row(PATCHES, "convex, gated on patches", gated, grid(rank=(30, 60), fraction=(0.05, 0.1)), gates, **SMALL),
    ]


def all_patches() -> list[Row]:
    """One layer of patches on all images. A seed of the gated program takes six minutes of CPU time, so there are two."""
    descent = {**SGD, **CUT, "width": 500, "epochs": 4}
    gates = {**GATED, **CUT, "lean": 0.0, "rank": 30, "tolerance": 2e-2, "iterations": 100, "memory": 6 * 10**9}
    final = {"gates": 1000, "memory": 13 * 10**9}
    rates = grid(rate=(0.03, 0.1), decay=(1e-4, 1e-3))
    return [
        Row(ALL_PATCHES, "SGD on patches, cross-entropy", by_sgd, rates, descent, {"epochs": 12}, choice_samples=15_000, seeds=3),
        Row(ALL_PATCHES, "convex, gated on patches", gated, grid(fraction=(0.003, 0.006, 0.012)), gates, final, seeds=2),
    ]


def square() -> list[Row]:
    """Images no more than pixels: depth 2 to 4."""
    rows = []
    for depth in (2, 3, 4):
        settings = {"depth": depth, "fraction": 0.1}
        adam = {**settings, "width": 200, "rate": 0.003, "epochs": 300}
        rows += [
            Row(SQUARE, f"Adam, depth {depth}", deep, shared=adam, samples=500, seeds=3),
            Row(SQUARE, f"closed form, depth {depth}", closed_form, shared={**settings, "width": 1000}, samples=500, seeds=3),
        ]
    return rows


def all_rows(gates: int) -> list[Row]:
    """What stands in the tables, with so many gates in the truncated program on all images."""
    return list(chain(whole_images(gates), part_of_images(), patches(), all_patches(), square()))


def quickened(row: Row) -> Row:
    """The same on few images, with small numbers and a choice between two."""
    most = {"epochs": 5, "gates": 30, "rounds": 2, "seconds": 3.0, "proof_seconds": 1.0, "width": 600, "rank": 20, "arrangements": 5}

    def capped(settings: Settings) -> Settings:
        return {name: min(value, most[name]) if name in most and value is not None else value for name, value in settings.items()}

    smallest = tuple(capped(settings) for settings in row.grid[:2])
    samples, part = min(row.samples or 500, 500), min(row.choice_samples or 400, 400)
    return replace(row, grid=smallest, shared=capped(row.shared), final=capped(row.final), samples=samples, choice_samples=part, seeds=1)

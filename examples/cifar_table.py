"""The tables on CIFAR: networks trained by descent beside those of the convex programs, all judged as PyTorch models.

    OMP_NUM_THREADS=2 python examples/cifar_table.py --data DIR [--dataset cifar100] [--device cuda] [--quick]

DIR holds the official archive or folder. All choices are made on a tenth of the training images; the test images are read once for
each seed of a row, at its end. Each result is written to FOLDER/results.json as soon as it is there (FOLDER is `output/cifar_table`),
and a run that is started again with the same settings goes on where it was interrupted. Writes FOLDER/table.md and FOLDER/table.png.
`--quick` takes about two minutes: 1,500 images and small grids.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifar_table_convex import all_arrangements, closed_form, gated, sampled_arrangements
from cifar_table_data import Part, Row, Settings, Split, Trained, load
from cifar_table_descent import by_sgd, deep, on_the_program
from cifar_table_report import draw, markdown
from convexbn.progress import console

CONVEX = all_arrangements, closed_form, gated, sampled_arrangements
WHOLE, PART, SQUARE = "Two layers, all images", "Two layers, a part of the images", "n <= d, every depth"
PATCHES, ALL_PATCHES = "Patches, averaged", "Patches, averaged, all images"


def grid(**choices: tuple[Any, ...]) -> tuple[Settings, ...]:
    """All combinations."""
    settings: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        settings = [{**others, name: value} for others in settings for value in values]
    return tuple(settings)


def all_rows(many: int) -> list[Row]:
    """What stands in the tables, with so many gates on all images. The grids are small: they were searched on two cores."""
    sgd = {"width": 1000, "batch": 250, "epochs": 12, "directions": 1000}
    gates = {"gates": 200, "lean": 0.4, "loss": "squared", "tolerance": 1e-2, "iterations": 40}
    relu = {"fraction": 0.1, "tolerance": 1e-3, "seconds": 60.0, "proof_seconds": 5.0}
    adam = {"width": 100, "rate": 0.1, "epochs": 1000, "fraction": 0.1}
    patches = {"patch": 8, "stride": 8}
    small = {"samples": 2000, "choice_samples": 1800}
    whole = [
        Row(
            *(WHOLE, "SGD, cross-entropy", by_sgd),
            grid=grid(rate=(0.03, 0.1, 0.3), decay=(1e-4, 1e-3)),
            shared={**sgd, "loss": "softmax"},
            seeds=3,
        ),
        Row(
            *(WHOLE, "SGD, squared loss", by_sgd),
            grid=grid(rate=(0.01, 0.03, 0.1), decay=(1e-3,)),
            shared={**sgd, "loss": "squared"},
        ),
        Row(
            *(WHOLE, "convex, gated, truncated", gated),
            grid=grid(loss=("squared", "softmax"), rank=(100, 150), fraction=(0.03, 0.06))
            + grid(loss=("softmax",), rank=(150, 200), fraction=(0.1,)),
            shared={**gates, "gates": 300, "directions": 1000},
            final={"gates": many},
            seeds=2,
        ),
        Row(
            *(WHOLE, "convex, gated, truncated, in the time of SGD", gated),
            shared={**gates, "gates": 400, "iterations": 10, "directions": 1000, "loss": "softmax", "rank": 150, "fraction": 0.06},
            seeds=3,
        ),
    ]
    of_a_part = {**sgd, "loss": "softmax", "batch": 100, "epochs": 15}
    part = [
        Row(PART, "SGD, cross-entropy", by_sgd, grid(rate=(0.03, 0.1), decay=(1e-3, 1e-2)), of_a_part, seeds=3, **small),
        Row(PART, "Adam on the program's objective", on_the_program, shared={**adam, "rank": 40}, seeds=3, samples=2000),
        Row(PART, "convex, gated, all directions", gated, grid(fraction=(0.1, 0.2)), {**gates, "gates": 50, "rank": None}, **small),
        Row(PART, "convex, gated, truncated", gated, grid(rank=(20, 40, 80), fraction=(0.05, 0.1)), gates, seeds=3, **small),
        Row(PART, "convex, ReLU, all arrangements", all_arrangements, shared={**relu, "rank": 40}, samples=2000),
        Row(
            *(PART, "convex, ReLU, sampled, one against the rest", sampled_arrangements),
            shared={"fraction": 0.1, "arrangements": 200, "rank": 40},
            samples=2000,
        ),
    ]
    convolutions = [
        Row(
            PATCHES,
            "SGD on patches, cross-entropy",
            by_sgd,
            grid(rate=(0.03, 0.1), decay=(1e-4, 1e-3)),
            {**of_a_part, **patches},
            seeds=3,
            **small,
        ),
        Row(
            PATCHES,
            "convex, ReLU on patches, all arrangements",
            all_arrangements,
            grid(rank=(15, 30), fraction=(0.02, 0.05)),
            {**relu, **patches},
            **small,
        ),
        Row(
            PATCHES,
            "convex, gated on patches",
            gated,
            grid(rank=(30, 60), fraction=(0.05, 0.1)),
            {**gates, **patches, "lean": 0.0},
            seeds=3,
            **small,
        ),
        Row(
            *(ALL_PATCHES, "SGD on patches, cross-entropy", by_sgd),
            grid=grid(rate=(0.03, 0.1), decay=(1e-4, 1e-3)),
            shared={**sgd, **patches, "width": 500, "loss": "softmax", "epochs": 4},
            final={"epochs": 12},
            choice_samples=15_000,
        ),
        Row(
            *(ALL_PATCHES, "convex, gated on patches", gated),
            grid=grid(fraction=(0.003, 0.006, 0.012)),
            shared={**gates, **patches, "lean": 0.0, "rank": 30, "tolerance": 2e-2, "iterations": 100, "memory": 6 * 10**9},
            final={"gates": 1000},
        ),
    ]
    square = []
    for depth in (2, 3, 4):
        settings = {"depth": depth, "fraction": 0.1}
        square += [
            Row(SQUARE, f"Adam, depth {depth}", deep, shared={**settings, "width": 200, "rate": 0.003, "epochs": 300}, samples=500),
            Row(SQUARE, f"closed form, depth {depth}", closed_form, shared={**settings, "width": 1000}, samples=500),
        ]
    return [*whole, *part, *convolutions, *square]


def quickened(row: Row) -> Row:
    """The same on few images, with small numbers and a choice between two."""
    most = {"epochs": 5, "gates": 30, "seconds": 3.0, "proof_seconds": 1.0, "width": 600, "rank": 20, "arrangements": 5}

    def capped(settings: Settings) -> Settings:
        return {name: min(value, most[name]) if name in most and value is not None else value for name, value in settings.items()}

    smallest = tuple(capped(settings) for settings in row.grid[:2])
    samples, part = min(row.samples or 500, 500), min(row.choice_samples or 400, 400)
    return replace(row, grid=smallest, shared=capped(row.shared), final=capped(row.final), samples=samples, choice_samples=part, seeds=1)


@dataclass
class Store:
    """The results so far, in a file that is replaced whole after each."""

    path: Path
    records: dict[str, dict[str, Any]]

    @classmethod
    def at(cls, path: Path) -> "Store":
        """What is there already."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def record(self, row: Row, setup: str) -> dict[str, Any]:
        """That of a row; an empty one where its settings or the data are new. More seeds only add to it."""
        key, made = f"{row.table}: {row.name}", f"{setup} {replace(row, fit=row.fit.__name__, seeds=0)!r}"
        if self.records.get(key, {}).get("made") != made:
            convex = row.fit in CONVEX
            self.records[key] = {"made": made, "table": row.table, "name": row.name, "convex": convex, "trials": [], "runs": []}
        return self.records[key]

    def save(self) -> None:
        """To the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.records, indent=1))
        partial.replace(self.path)


def fitted(row: Row, part: Part, settings: Settings, seed: int, device: str) -> tuple[Trained, dict[str, float]]:
    """The model and its times."""
    wall, cpu = time.perf_counter(), time.process_time()
    trained = row.fit(part, settings, seed, device)
    return trained, {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def complete(row: Row, split: Split, store: Store, setup: str, device: str) -> None:
    """Choose the settings and fit with them, as far as that isn't done yet."""
    record = store.record(row, setup)
    choosing = split.train.first(row.choice_samples)
    for settings in row.grid[len(record["trials"]) :] if len(row.grid) > 1 else ():
        trained, times = fitted(row, choosing, {**row.shared, **settings}, 0, device)
        accuracy = split.validation.accuracy(trained.model)
        record["trials"].append({"settings": dict(settings), "validation": accuracy, "samples": len(choosing.labels), **times})
        store.save()
        console().print(
            f"{row.table}, {row.name}: {dict(settings)} has {accuracy:.2%} on the validation images, {times['cpu']:.0f} s of CPU"
        )
    best = max(record["trials"], key=lambda trial: trial["validation"])["settings"] if record["trials"] else row.grid[0]
    settings = {**row.shared, **best, **row.final}
    part = split.whole.first(row.samples)
    record.update(settings=settings, samples=len(part.labels))
    for seed in range(len(record["runs"]), row.seeds):
        trained, times = fitted(row, part, settings, seed, device)
        outcome = {"objective": trained.objective, "bound": trained.bound, "evidence": trained.evidence}
        record["runs"].append({"seed": seed, "test": split.test.accuracy(trained.model), **outcome, **times})
        store.save()
        console().print(
            f"{row.table}, {row.name}, seed {seed}: {record['runs'][-1]['test']:.2%} on the test images, {times['cpu']:.0f} s of CPU"
        )


def main() -> None:
    """Row after row; the tables are written after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--device", default="cpu", help="of descent and of the gated program; the other programs take the CPU")
    parser.add_argument("--quick", action="store_true", help="about two minutes: at most 1,500 images and small grids")
    parser.add_argument("--gates", type=int, default=2000, help="of the gated program on all images; its cost grows with them")
    parser.add_argument("--title", help="what the data are called in the tables, such as a copy of CIFAR-10")
    parser.add_argument("--only", nargs="+", type=int, metavar="ROW", help="numbers of rows, from 0")
    parser.add_argument("--output", type=Path, default=Path("output/cifar_table"), metavar="FOLDER")
    arguments = parser.parse_args()
    rows = [quickened(row) if arguments.quick else row for row in all_rows(arguments.gates)]
    split = load(arguments.dataset, arguments.data, arguments.output, 1500 if arguments.quick else None)
    title = arguments.title or arguments.dataset.upper().replace("CIFAR", "CIFAR-")
    setup = f"{title} {len(split.train.labels)} {len(split.validation.labels)} {len(split.test.labels)}"
    store = Store.at(arguments.output / "results.json")
    for number, row in enumerate(rows):
        if arguments.only is not None and number not in arguments.only:
            continue
        console().print(f"row {number} of {len(rows) - 1}: {row.table}, {row.name}")
        complete(row, split, store, setup, arguments.device)
        records = [record for record in (store.records.get(f"{row.table}: {row.name}") for row in rows) if record and record["runs"]]
        (arguments.output / "table.md").write_text(markdown(records, title, len(split.test.labels)))
        draw(records, title, arguments.output / "table.png")


if __name__ == "__main__":
    main()

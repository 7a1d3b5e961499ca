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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cifar_table_data import Part, Row, Settings, Split, Trained, load
from cifar_table_report import draw, markdown
from cifar_table_rows import CONVEX, ON_DEVICE, all_rows, quickened
from convexbn.devices import check_device
from convexbn.progress import console
from convexbn.validation import InputError


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


def clock(device: str) -> tuple[float, float]:
    """Wall and CPU time once the device has done what it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def fitted(row: Row, part: Part, settings: Settings, seed: int, device: str) -> tuple[Trained, dict[str, float]]:
    """The model and its times."""
    wall, cpu = clock(device)
    trained = row.fit(part, settings, seed, device)
    wall_after, cpu_after = clock(device)
    return trained, {"seconds": wall_after - wall, "cpu": cpu_after - cpu}


def choose(row: Row, split: Split, record: dict[str, Any], save: Callable[[], None], device: str) -> None:
    """Try the settings of the grid, as far as that isn't done yet."""
    part = split.train.first(row.choice_samples)
    for settings in row.grid[len(record["trials"]) :] if len(row.grid) > 1 else ():
        trained, times = fitted(row, part, {**row.shared, **settings}, 0, device)
        accuracy = split.validation.accuracy(trained.model)
        record["trials"].append({"settings": dict(settings), "validation": accuracy, "samples": len(part.labels), **times})
        save()
        console().print(
            f"{row.table}, {row.name}: {dict(settings)} has {accuracy:.2%} on the validation images, {times['cpu']:.0f} s of CPU"
        )


def chosen(row: Row, store: Store) -> Settings:
    """What the validation images chose for the row, or for the one that it follows."""
    trials = store.records.get(f"{row.table}: {row.choice_of or row.name}", {}).get("trials", [])
    if row.choice_of and not trials:
        raise SystemExit(f"{row.name} takes over the choice of '{row.choice_of}': run that row first")
    return max(trials, key=lambda trial: trial["validation"])["settings"] if trials else row.grid[0]


def complete(row: Row, split: Split, store: Store, setup: str, device: str) -> None:
    """Choose the settings and fit with them, as far as that isn't done yet."""
    record = store.record(row, setup)
    choose(row, split, record, store.save, device)
    settings = {**row.shared, **chosen(row, store), **row.final}
    if record["runs"] and record["settings"] != settings:
        record["runs"].clear()  # the row that it follows has chosen anew
    samples = min(row.samples or len(split.whole.labels), len(split.whole.labels))
    record.update(settings=settings, samples=samples, device=device if row.fit in ON_DEVICE else "cpu")
    for seed in range(len(record["runs"]), row.seeds):
        trained, times = fitted(row, split.whole.drawn(row.samples, seed), settings, seed, device)
        outcome = {"objective": trained.objective, "bound": trained.bound, "evidence": trained.evidence}
        record["runs"].append({"seed": seed, "test": split.test.accuracy(trained.model), **outcome, **times})
        store.save()
        console().print(
            f"{row.table}, {row.name}, seed {seed}: {record['runs'][-1]['test']:.2%} on the test images, {times['cpu']:.0f} s of CPU"
        )


def machine(device: str) -> str:
    """Where PyTorch computes, and whether in TF32."""
    if not device.startswith("cuda"):
        return f"PyTorch on {torch.get_num_threads()} thread(s) of the CPU"
    products, convolutions = torch.get_float32_matmul_precision(), "with" if torch.backends.cudnn.allow_tf32 else "without"
    return f"PyTorch on {torch.cuda.get_device_name(device)}, products in precision '{products}', convolutions {convolutions} TF32"


def arguments() -> argparse.Namespace:
    """What was asked for; a device that isn't there is refused before anything is read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--device", default="cpu", help="of descent and of the gated program; the other programs take the CPU")
    parser.add_argument("--quick", action="store_true", help="about two minutes: at most 1,500 images and small grids")
    parser.add_argument("--gates", type=int, default=2000, help="of the truncated gated program on all images; its cost grows with them")
    parser.add_argument("--title", help="what the data are called in the tables, such as a copy of CIFAR-10")
    parser.add_argument("--only", nargs="+", type=int, metavar="ROW", help="numbers of rows, from 0")
    parser.add_argument("--output", type=Path, default=Path("output/cifar_table"), metavar="FOLDER")
    given = parser.parse_args()
    try:
        check_device(given.device)
    except InputError as error:
        parser.error(str(error))
    given.title = given.title or given.dataset.upper().replace("CIFAR", "CIFAR-")
    return given


def main() -> None:
    """Row after row; the tables are written after each."""
    given = arguments()
    rows = [quickened(row) if given.quick else row for row in all_rows(given.gates)]
    split = load(given.dataset, given.data, given.output, 1500 if given.quick else None)
    setup = f"{given.title} {len(split.train.labels)} {len(split.validation.labels)} {len(split.test.labels)} {given.device}"
    store = Store.at(given.output / "results.json")
    for number, row in enumerate(rows):
        if given.only is not None and number not in given.only:
            continue
        console().print(f"row {number} of {len(rows) - 1}: {row.table}, {row.name}")
        complete(row, split, store, setup, given.device)
        records = [record for record in (store.records.get(f"{row.table}: {row.name}") for row in rows) if record and record["runs"]]
        (given.output / "table.md").write_text(markdown(records, given.title, len(split.test.labels), machine(given.device)))
        draw(records, given.title, given.output / "table.png")


if __name__ == "__main__":
    main()

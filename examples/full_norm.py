"""Batches that are small or made of few classes: full normalisation beside batch, group and batch renormalisation.

    OMP_NUM_THREADS=1 python examples/full_norm.py [--quick] [--picture PATH] [--data FOLDER]

scikit-learn's digits, 1,000 to train, 397 to validate, 400 to test; two convolutions and a hidden layer, each normalised; plain
SGD with a rate that falls to 0 by a half cosine. Every method has the same steps and the same grid of rates, of which the
validation set chooses, and reads the test set once. Statistics are set to the exact ones of the training set before training and
before evaluation, for every method that has them. With --data, the same on photographs: 2,000 of CIFAR-10 in the official layout to
train, 1,000 to validate, 1,000 to test, one convolution more, and fewer kinds of batches.

The gradient is measured at the same weights for all: its mean over an epoch of batches that each start from exact averages, beside
the gradient of the objective over the full batch. Group normalisation's objective knows no batches, so its gradient has no bias.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convexbn.datasets import read_cifar10
from convexbn.training.full_norm import (
    batch_norm_objective,
    convert_batch_norm,
    full_norm_gradient,
    full_norm_objective,
    set_exact_statistics,
)

RATES = (0.3, 0.1, 0.03)
STEPS = {1: 1000, 2: 800, 8: 400, 64: 200}
SHARE, SMALL_SHARE = 0.1, 0.01  # of a batch in the running averages: in training, and to see how the bias depends on it
Batches = list[tuple[Tensor, Tensor]]


class BatchRenorm(nn.Module):
    """Batch renormalisation (Ioffe 2017), z r + d with r = clip(sigma_B / sigma), d = clip((m_B - m) / sigma), both constants.

    To be mixed into a layer of batch normalisation, whose eval mode it keeps.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Normalise, and in training move the running statistics."""
        if not self.training:
            return super().forward(h)
        dims, shape = [0, *range(2, h.dim())], (1, -1, *[1] * (h.dim() - 2))
        var, mean = torch.var_mean(h, dims, correction=0)
        deviation, running = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (deviation.detach() / running).clamp(1 / 3, 3)
        d = ((mean.detach() - self.running_mean) / running).clamp(-5, 5)
        z = (h - mean.view(shape)) * (r / deviation).view(shape) + d.view(shape)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return z * self.weight.view(shape) + self.bias.view(shape)


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    """For features."""


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    """For images."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Four channels a group."""
    return nn.GroupNorm(channels // 4, channels)


# The layers of each method before conversion, for images and for features.
METHODS = {
    "full normalisation": (nn.BatchNorm2d, nn.BatchNorm1d),
    "stop-gradient": (nn.BatchNorm2d, nn.BatchNorm1d),
    "batch normalisation": (nn.BatchNorm2d, nn.BatchNorm1d),
    "batch renormalisation": (BatchRenorm2d, BatchRenorm1d),
    "group normalisation": (group_norm, group_norm),
}
COLOURS = dict(zip(METHODS, ("#1f5fa8", "#7fa8d1", "#d98c3f", "#a04a7a", "#5b8c5a"), strict=True))
COLUMNS = ("size", "classes", "method", "rate", "valid. %", "test %", "its objective", "loss after", "cosine", "rel. error", "a = 0.01")
MARKERS = dict(zip(METHODS, "oDs^v", strict=True))


@dataclass(frozen=True)
class Row:
    """One method with one kind of batches: accuracies in percent, and relative errors of its gradient with both shares.

    The objective is the one it minimises, the loss that of the network it leaves, which uses the statistics of the training set.
    """

    size: int
    classes: int
    method: str
    rate: float
    validation: float
    test: float
    objective: float
    loss: float
    cosine: float
    error: float
    small_share_error: float | None


def network(method: str, images: Tensor) -> nn.Module:
    """The same initial weights for every method; photographs (n, 3, 32, 32) pass a first block that makes them (n, 8, 8, 8)."""
    torch.manual_seed(0)
    image, feature = METHODS[method]
    photographs = images.shape[1] == 3
    block = (nn.Conv2d(3, 8, 3, stride=2, padding=1), image(8), nn.ReLU(), nn.MaxPool2d(2)) if photographs else ()
    model = nn.Sequential(
        *block,
        *(nn.Conv2d(8 if photographs else 1, 8, 3, padding=1), image(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), image(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 32), feature(32), nn.ReLU(), nn.Linear(32, 10)),
    )
    if method == "full normalisation":
        return convert_batch_norm(model, momentum=SHARE)
    if method == "stop-gradient":
        return convert_batch_norm(model, momentum=SHARE, gradient="stop")
    if method == "batch normalisation":
        return convert_batch_norm(model, momentum=1.0)  # the limit that is PyTorch's layer, but for taking batches of one
    return model


def partition(X: Tensor, y: Tensor, size: int, classes: int, generator: torch.Generator) -> Batches:
    """One epoch of batches of at most `size` samples and `classes` classes, which random groups of classes share; in random order."""
    batches = []
    for group in torch.randperm(10, generator=generator).split(classes):
        rows = torch.isin(y, group).nonzero()[:, 0]
        batches += list(rows[torch.randperm(len(rows), generator=generator)].split(size))
    return [(X[batches[k]], y[batches[k]]) for k in torch.randperm(len(batches), generator=generator)]


def has_statistics(method: str) -> bool:
    """Whether its layers have running statistics."""
    return method != "group normalisation"


def train(method: str, data: tuple[Tensor, Tensor], size: int, classes: int, rate: float, steps: int) -> nn.Module:
    """The network after SGD, in eval mode with exact statistics."""
    model = network(method, data[0])
    set_exact_statistics(model, [data], cross_entropy if method == "full normalisation" else None)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(1)
    queue: Batches = []
    for _ in range(steps):
        queue = queue or partition(*data, size, classes, generator)
        x, y = queue.pop()
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
        schedule.step()
    set_exact_statistics(model, [data])
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """In percent."""
    return 100.0 * (model(X).argmax(1) == y).double().mean().item()


def gradient_bias(
    method: str, weights: nn.Module, data: tuple[Tensor, Tensor], batches: Batches, share: float = SHARE
) -> tuple[float, float]:
    """Cosine and relative error of the mean gradient over the batches against the gradient over the full batch, in float64."""
    if not has_statistics(method):
        return 1.0, 0.0
    model = network(method, data[0])
    model.load_state_dict(weights.state_dict())
    model, exact = model.double().train(), convert_batch_norm(copy.deepcopy(weights)).double()
    full = full_norm_gradient(exact, [data], cross_entropy)
    set_exact_statistics(model, [data], cross_entropy if method == "full normalisation" else None)
    if share != SHARE:
        for layer in model:
            layer.momentum = share
    averages = {name: value.clone() for name, value in model.named_buffers()}
    mean = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for x, y in batches:
        gradient = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        mean += len(x) / len(data[0]) * torch.cat([part.flatten() for part in gradient])
        for name, value in model.named_buffers():
            value.copy_(averages[name])
    true = torch.cat([full[name].flatten() for name, _ in model.named_parameters()])
    return torch.cosine_similarity(mean, true, dim=0).item(), ((mean - true).norm() / true.norm()).item()


def best_run(
    method: str, splits: dict[str, tuple[Tensor, Tensor]], size: int, classes: int, scale: float
) -> tuple[float, float, nn.Module]:
    """Accuracy on the validation set, rate and network of the rate that does best there."""
    runs = []
    for rate in RATES:
        model = train(method, splits["train"], size, classes, rate, max(1, int(scale * STEPS[size])))
        runs.append((accuracy(model, *splits["validation"]), rate, model))
    return max(runs, key=lambda run: run[0])


def measure(method: str, splits: dict[str, tuple[Tensor, Tensor]], weights: nn.Module, size: int, classes: int, scale: float) -> Row:
    """Train, choose, judge."""
    validation, rate, model = best_run(method, splits, size, classes, scale)
    data, batches = splits["train"], partition(*splits["train"], size, classes, torch.Generator().manual_seed(2))
    loss = full_norm_objective(model, [data], cross_entropy)
    objective = batch_norm_objective(model, batches, cross_entropy) if method == "batch normalisation" else loss
    double, whole = [(x.double(), y) for x, y in batches], (data[0].double(), data[1])
    cosine, error = gradient_bias(method, weights, whole, double)
    small = gradient_bias(method, weights, whole, double, SMALL_SHARE)[1] if method == "full normalisation" else None
    return Row(size, classes, method, rate, validation, accuracy(model, *splits["test"]), objective, loss, cosine, error, small)


def load(quick: bool, folder: Path | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Images in [-1, 1], (n, 1, 8, 8) or (n, 3, 32, 32), and labels, in three parts."""
    if folder is not None:
        return photographs(quick, folder)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    X, y = torch.tensor(images[order] / 8.0 - 1.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels[order])
    ends = {"train": (0, 200 if quick else 1000), "validation": (1000, 1397), "test": (1397, 1797)}
    return {name: (X[start:end], y[start:end]) for name, (start, end) in ends.items()}


def photographs(quick: bool, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """CIFAR-10: training and validation images from its training part, test images from its test part."""
    data = read_cifar10(folder)
    rows = np.random.default_rng(0).permutation(len(data.train_labels))[:3000]
    tests = np.random.default_rng(1).permutation(len(data.test_labels))[:1000]

    def part(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.tensor(images[chosen] / 127.5 - 1.0, dtype=torch.float32), torch.tensor(labels[chosen], dtype=torch.int64)

    train, validation = (part(data.train_images, data.train_labels, chosen) for chosen in (rows[: 200 if quick else 2000], rows[2000:]))
    return {"train": train, "validation": validation, "test": part(data.test_images, data.test_labels, tests)}


def settings(quick: bool, folder: Path | None) -> list[tuple[int, int]]:
    """Sizes and classes of the batches; a batch of one has one class."""
    if quick:
        sizes, classes = (8, 64), (1, 10)
    else:
        sizes, classes = (tuple(STEPS), (1, 3, 10)) if folder is None else ((2, 8, 64), (1, 10))
    return [(size, number) for size in sizes for number in classes if size > 1 or number == 1]


def table_of(rows: list[Row], data: str) -> Table:
    """All of them; the best test accuracy of each kind of batches in bold."""
    table = Table(title=f"{data}, mini-batches of a few classes")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows:
        best = max(rival.test for rival in rows if (rival.size, rival.classes) == (row.size, row.classes))
        test = f"[bold]{row.test:.1f}[/]" if row.test == best else f"{row.test:.1f}"
        chosen = f"{row.rate:g}", f"{row.validation:.1f}", test
        errors = f"{row.error:.2g}", "" if row.small_share_error is None else f"{row.small_share_error:.2g}"
        numbers = f"{row.objective:.3f}", f"{row.loss:.3f}", f"{row.cosine:.3f}", *errors
        table.add_row(str(row.size), str(row.classes), row.method, *chosen, *numbers, end_section=row.method == list(METHODS)[-1])
    return table


def draw(rows: list[Row], path: Path) -> None:
    """Test error and gradient error against the size of the batches, a column of panels for each number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    classes, sizes = sorted({row.classes for row in rows}), sorted({row.size for row in rows})
    plt.rcParams.update({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(classes), figsize=(12, 7), sharex=True, sharey="row", layout="constrained", squeeze=False)
    for (upper, lower), number in zip(axes.T, classes, strict=True):
        for method in METHODS:
            mine = [row for row in rows if row.method == method and (row.classes == number or row.size == 1)]
            draw_method(upper, lower, [sizes.index(row.size) for row in mine], mine)
        upper.set_title("one class in a batch" if number == 1 else f"up to {number} classes in a batch", fontsize=11.5)
        lower.set_xlabel("samples in a batch")
        lower.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        for panel, line in ((upper, 90.0), (lower, 1.0)):
            panel.axhline(line, color="#999999", lw=1, ls=":")
            panel.set_yscale("log")
            panel.grid(axis="y", color="#e6e6e6", lw=0.8)
            panel.set_axisbelow(True)
    label(axes, rows, len(sizes) - 1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_method(upper: Any, lower: Any, places: list[int], rows: list[Row]) -> None:
    """One method's line in each of two panels, and a broken one for the gradient with the small share."""
    method = rows[0].method
    style = {"color": COLOURS[method], "marker": MARKERS[method], "lw": 1.6, "ms": 6}
    if rows[0].small_share_error is not None:
        lower.plot(places, [row.small_share_error for row in rows], **style, ls="--", mfc="white")
        style["lw"] = 2.6
    upper.plot(places, [max(100.0 - row.test, 0.25) for row in rows], label=method, **style)
    if has_statistics(method):
        lower.plot(places, [row.error for row in rows], **style)


def label(axes: Any, rows: list[Row], right: int) -> None:
    """Names of axes and lines."""
    hard = min(100.0 - row.test for row in rows) > 50.0
    ticks = [50, 60, 70, 80, 90] if hard else [1, 2, 5, 10, 20, 50, 90]
    axes[0, 0].set_yticks(ticks, [f"{tick} %" for tick in ticks])
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("test error")
    axes[1, 0].set_ylabel("relative error of the mean gradient")
    axes[0, 0].text(0, 91 if hard else 84, "chance", va="bottom" if hard else "top", color="#777777", fontsize=9)
    axes[1, 0].set_yticks([0.01, 0.1, 1.0, 10.0], ["1 %", "10 %", "100 %", "1000 %"])
    classes = sorted({row.classes for row in rows})[1]
    last = next(row for row in reversed(rows) if row.classes == classes and row.small_share_error is not None)
    style = {"textcoords": "offset points", "ha": "right", "color": COLOURS[last.method], "fontsize": 9.5}
    for error, share in ((last.error, SHARE), (last.small_share_error, SMALL_SHARE)):
        axes[1, 1].annotate(f"a = {share}", (right, error), (0, -16), **style)


def main() -> None:
    """Measure every method with every kind of batches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few settings, samples and steps, to see that it runs")
    parser.add_argument("--picture", type=Path, help="where to write a picture")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-10 in the official layout, instead of the digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, splits = time.perf_counter(), load(arguments.quick, arguments.data)
    scale = 0.05 if arguments.quick else 1.0
    weights = train("full normalisation", splits["train"], 64, 10, 0.1, max(1, int(100 * scale)))
    cases = [(size, classes, method) for size, classes in settings(arguments.quick, arguments.data) for method in METHODS]
    rows = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        for size, classes, method in progress.track(cases, description="training"):
            rows.append(measure(method, splits, weights, size, classes, scale))
    Console(width=140).print(table_of(rows, "CIFAR-10" if arguments.data else "Digits"))
    data = splits["train"][0].double(), splits["train"][1]
    one_class = partition(*data, 8, 1, torch.Generator().manual_seed(2))
    _, error = gradient_bias("full normalisation", weights, data, one_class, share=0.0)
    print(f"full normalisation with frozen averages, batches of 8 of one class: relative error {error:.0e}")
    print(f"{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} thread")
    if arguments.picture:
        draw(rows, arguments.picture)
        print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()

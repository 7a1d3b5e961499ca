"""The rows of `cifar_table.py` that are trained by gradient methods."""

from itertools import pairwise

import torch
from torch import nn

from cifar_table_data import Part, Settings, Trained, WithMirror, coordinates, principal
from convexbn import Squared, beta_max, to_torch
from convexbn.training import SGD, Adam, train_model, train_networks


def two_layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Linear, BatchNorm1d, ReLU, Linear."""
    return nn.Sequential(nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, outputs, bias=False))


def convolution(part: Part, width: int, patch: int, stride: int) -> nn.Sequential:
    """One layer of patches, averaged: Conv2d, BatchNorm2d, ReLU, AdaptiveAvgPool2d, Flatten, Linear."""
    first = nn.Conv2d(part.images.shape[1], width, patch, stride, bias=False)
    last = nn.Linear(width, part.classes, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


class EitherMirrored(nn.Module):
    """Of coordinates (n, 1, 2, d) one of the two while it is trained, drawn for each image; the mean of both afterwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        """(n, C) outputs."""
        if self.training:
            drawn = torch.randint(2, (len(both),), device=both.device)
            outputs: torch.Tensor = self.network(both[torch.arange(len(both), device=both.device), 0, drawn])
            return outputs
        return 0.5 * (self.network(both[:, 0, 0]) + self.network(both[:, 0, 1]))


def by_sgd(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """The usual practice: mini-batches, momentum 0.9, weight decay on everything, cosine.

    On coordinates along the leading principal directions of the pixels. All of them would be a rotation, which changes nothing for
    descent. With `mirrored`, of each image or its mirror image at random. Or, with `patch`, on the images.
    """
    torch.manual_seed(seed)
    if "patch" in settings:
        before = nn.Sequential(nn.Identity())
        model = convolution(part, settings["width"], settings["patch"], settings["stride"])
    else:
        before = principal(part, settings["directions"])
        model = two_layers(before[1].out_features, settings["width"], part.classes)
    if settings.get("mirrored"):
        before, model = nn.Sequential(WithMirror(before)), nn.Sequential(EitherMirrored(model))
    run = train_model(
        model,
        coordinates(before, part),
        part.targets,
        loss=settings["loss"],
        weight_decay=settings["decay"],
        method=SGD(settings["rate"]),
        epochs=settings["epochs"],
        batch_size=min(settings["batch"], len(part.labels)),
        seed=seed,
        device=device,
        verbose=True,
    )
    return Trained(nn.Sequential(before.to(device), *run.model))


def on_the_program(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """Full-batch Adam on exactly the objective of the convex program, squared loss, on the leading principal directions."""
    beta = settings["fraction"] * beta_max(part.pixels, part.targets, rank=settings["rank"])
    (run,) = train_networks(
        part.pixels,
        part.targets,
        beta=beta,
        rank=settings["rank"],
        width=settings["width"],
        method=Adam(settings["rate"]),
        epochs=settings["epochs"],
        seed=seed,
        device=device,
        verbose=True,
    )
    objective = run.network.objective(part.pixels, part.targets, Squared(), beta)
    return Trained(nn.Sequential(nn.Flatten(), *to_torch(run.network)), objective)


def deep(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """Full-batch Adam on a network of `depth` layers, Linear, BatchNorm1d and ReLU each but the last; the objective has them all."""
    torch.manual_seed(seed)
    sizes = [part.images[0].size] + [settings["width"]] * (settings["depth"] - 1)
    layers: list[nn.Module] = [nn.Flatten()]
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following, bias=False), nn.BatchNorm1d(following), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], part.classes, bias=False))
    for norm in layers[2::3]:
        nn.init.constant_(norm.weight, len(part.labels) ** -0.5)  # a gain of 1; PyTorch's 1 is a gain of sqrt(n), and costs n times as much
    run = train_model(
        model,
        part.inputs,
        part.targets,
        loss="squared",
        beta=part.square_beta(settings["fraction"]),
        method=Adam(settings["rate"]),
        epochs=settings["epochs"],
        batch_size=None,
        device=device,
        verbose=True,
    )
    return Trained(run.model, float(run.history[-1]) * len(part.labels))

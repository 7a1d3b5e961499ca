"""The networks of full_norm.py: one architecture, five ways to normalise it, several seeds side by side as groups of convolutions."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convexbn.training.full_norm import convert_batch_norm, set_exact_statistics

CLASSES = 10
SHARE = 0.1  # of a batch in the running averages
METHODS = ("full normalisation", "stop-gradient", "batch normalisation", "batch renormalisation", "group normalisation")
Labelled = tuple[Tensor, Tensor]


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch renormalisation (Ioffe 2017), z r + d with r = clip(sigma_B / sigma), d = clip((m_B - m) / sigma), both constants."""

    def forward(self, h: Tensor) -> Tensor:
        """Normalise h (N, C, height, width), and in training move the running statistics."""
        if not self.training:
            return super().forward(h)
        shape = (1, -1, 1, 1)
        var, mean = torch.var_mean(h, (0, 2, 3), correction=0)
        deviation, running = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (deviation.detach() / running).clamp(1 / 3, 3)
        d = ((mean.detach() - self.running_mean) / running).clamp(-5, 5)
        z = (h - mean.view(shape)) * (r / deviation).view(shape) + d.view(shape)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return z * self.weight.view(shape) + self.bias.view(shape)


def has_statistics(method: str) -> bool:
    """Whether its layers have running statistics."""
    return method != "group normalisation"


def network(method: str, images: Tensor, seeds: int = 1) -> nn.Sequential:
    """Three convolutions and a linear layer, all but the last normalised, from (N, seeds channels, side, side) to (N, 10 seeds, 1, 1).

    Every method has the same initial weights. Images of 32 x 32 pass a convolution of patches first, to (N, 8 seeds, 8, 8).
    """
    torch.manual_seed(0)
    channels, side = images.shape[1:3]
    large = side == 32

    def convolution(inputs: int, outputs: int, size: int, **settings: int) -> nn.Conv2d:
        return nn.Conv2d(seeds * inputs, seeds * outputs, size, groups=seeds, **settings)

    def norm(width: int) -> nn.Module:
        if method == "group normalisation":
            return nn.GroupNorm(seeds * width // 4, seeds * width)  # four channels a group
        return BatchRenorm2d(seeds * width) if method == "batch renormalisation" else nn.BatchNorm2d(seeds * width)

    block = (convolution(channels, 8, 5, stride=4, padding=1), norm(8), nn.ReLU()) if large else ()
    model = nn.Sequential(
        *block,
        *(convolution(8 if large else channels, 8, 3, padding=1), norm(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(convolution(8, 16, 3), norm(16), nn.ReLU()),
        *(convolution(16, 32, 2), norm(32), nn.ReLU()),  # of 2 x 2 pixels, so it is a linear layer
        convolution(32, CLASSES, 1),
    )
    if method == "full normalisation":
        return convert_batch_norm(model, momentum=SHARE)
    if method == "stop-gradient":
        return convert_batch_norm(model, momentum=SHARE, gradient="stop")
    if method == "batch normalisation":
        return convert_batch_norm(model, momentum=1.0)  # the limit that is PyTorch's layer, but for taking batches of one
    return model


def several(data: Labelled, seeds: int) -> Labelled:
    """The same images for every seed: (n, seeds channels, side, side), and labels (n, seeds)."""
    return data[0].repeat(1, seeds, 1, 1), data[1][:, None].repeat(1, seeds)


def scores(outputs: Tensor) -> Tensor:
    """The outputs of a network with their classes second, (N, 10, seeds)."""
    return outputs.reshape(len(outputs), -1, CLASSES).transpose(1, 2)


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over the samples, summed over the seeds, whose gradients thereby are their own; labels y (N, seeds)."""
    return y.shape[1] * cross_entropy(scores(outputs), y)


@torch.no_grad()
def accuracy(model: nn.Module, data: Labelled) -> Tensor:
    """In percent, shape (seeds,), on the data of `several`."""
    return 100.0 * (scores(model(data[0])).argmax(1) == data[1]).double().mean(0)


def partition(y: Tensor, size: int, classes: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch of batches, as rows of at most `size` samples and `classes` classes, which random groups of classes share."""
    batches = []
    for group in torch.randperm(CLASSES, generator=generator).split(classes):
        rows = torch.isin(y, group).nonzero()[:, 0]
        batches += list(rows[torch.randperm(len(rows), generator=generator)].split(size))
    return [batches[k] for k in torch.randperm(len(batches), generator=generator)]


def stream(data: Labelled, size: int, classes: int, seed: int) -> Iterator[Labelled]:
    """Epoch after epoch of full batches; what is left over waits for the next epoch, whose batches are others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        full = [rows for rows in partition(data[1], size, classes, generator) if len(rows) == size]
        if not full:
            raise ValueError(f"{classes} classes have too few samples for a batch of {size}")
        yield from ((data[0][rows], data[1][rows]) for rows in full)


def train(
    method: str, data: Labelled, size: int, classes: int, rates: tuple[float, ...], steps: int, seeds: int = 1
) -> list[nn.Sequential]:
    """For each rate the networks after SGD, in eval mode with exact statistics; each seed has batches of its own, each rate the same.

    All train at once, rates times seeds side by side.
    """
    start, copies = network(method, data[0], seeds), len(rates) * seeds
    set_exact_statistics(start, [several(data, seeds)], loss if method == "full normalisation" else None)
    model = network(method, data[0], copies)
    values = zip([*model.parameters(), *model.buffers()], [*start.parameters(), *start.buffers()], strict=True)
    for value, first in values:
        value.data = torch.cat(len(rates) * [first.data]) if first.dim() else first.data.clone()
    optimiser, factors = torch.optim.SGD(model.parameters(), lr=1.0), torch.tensor(rates).repeat_interleave(seeds)[:, None]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    streams = zip(*(stream(data, size, classes, 1 + seed) for seed in range(seeds)), strict=True)
    for _ in range(steps):
        x, y = zip(*next(streams), strict=True)
        optimiser.zero_grad()
        loss(model(torch.cat(len(rates) * x, dim=1)), torch.stack(len(rates) * y, dim=1)).backward()
        for parameter in model.parameters():
            parameter.grad.view(copies, -1).mul_(factors)
        optimiser.step()
        schedule.step()
    set_exact_statistics(model, [several(data, copies)])
    return apart(model, [network(method, data[0], seeds) for _ in rates])


def apart(model: nn.Sequential, parts: list[nn.Sequential]) -> list[nn.Sequential]:
    """The parts of networks side by side, in eval mode."""
    for k, part in enumerate(parts):
        part.load_state_dict({name: value.chunk(len(parts))[k] if value.dim() else value for name, value in model.state_dict().items()})
    return [part.eval() for part in parts]

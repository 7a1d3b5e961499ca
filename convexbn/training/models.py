"""Any PyTorch module with batch normalisation, trained on mini-batches: the usual practice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convexbn.devices import check_device
from convexbn.losses import Loss, get_loss
from convexbn.training.decoupled import NORMS
from convexbn.training.descent import Plan, descend
from convexbn.training.losses import check_torch_loss, torch_loss
from convexbn.training.methods import SGD, Method
from convexbn.validation import FloatArray, InputError, check_positive, check_targets

BATCH = 1000  # in evaluation, where batches only bound the memory
Penalty = Callable[[], Tensor | float]


@dataclass(frozen=True)
class ModelRun:
    """A trained module.

    Attributes
    ----------
    model : of the best epoch on the validation set, or of the last epoch where there is none; in evaluation mode
    history : (epochs,) mean objective of the batches of each epoch, while they were trained on; with one batch of all samples
        (epochs + 1,), before each step and after the last
    validation : (epochs + 1,) mean loss on the validation set, before training and after each epoch; None without one
    seconds : wall-clock time
    """

    model: nn.Module
    history: FloatArray
    validation: FloatArray | None
    seconds: float


def train_model(
    model: nn.Module,
    X: npt.ArrayLike | Tensor,
    y: npt.ArrayLike,
    *,
    loss: str | Loss = "softmax",
    weight_decay: float = 0.0,
    beta: float | None = None,
    method: Method | None = None,
    epochs: int = 20,
    batch_size: int | None = 128,
    validation: tuple[npt.ArrayLike | Tensor, npt.ArrayLike] | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    verbose: bool = False,
) -> ModelRun:
    """Train a module by batches B, each normalised by its own statistics, on

        mean over B of l(f(x_i), y_i)  +  (weight_decay / 2) sum over all parameters theta of ||theta||^2,

    the usual practice; or, with `beta`, on the objective of the convex program divided by n,

        (1/|B|) L(f(X_B), y_B)  +  (beta/2) sum over norms of k ( ||weight||^2 + ||bias||^2 )  +  (beta / 2n) ||last weight||^2,

    k being the rows that the batch normalisation sees for each sample: 1, or the patches of an image. With `batch_size=None` and an
    `eps` below rounding the latter is `Network.objective` / n.

    Parameters
    ----------
    model : a module; it is copied. Its type of number is that of the computation
    X : (n, ...) inputs of the module
    y : (n,) or (n, C) targets, one-hot rows for softmax
    loss : as in `fit_convex_bn`, "softmax" being cross-entropy
    weight_decay, beta : of the objective, one of them
    method : `SGD()` by default
    epochs, batch_size, patience, seed, verbose : of the `Plan`
    validation : inputs and targets whose mean loss chooses the epoch; without them it is the last
    device : where PyTorch computes, such as "cuda"

    Raises
    ------
    InputError
        For unusable arguments.
    """
    the_loss, place = get_loss(loss), check_device(device)
    check_torch_loss(the_loss)
    plan = Plan(epochs, batch_size, patience, seed, verbose)
    if patience is not None and validation is None:
        raise InputError(f"patience = {patience} has nothing to wait for: pass a validation set, or leave it out")
    trained = copy.deepcopy(model).to(place)
    data = _tensors(X, y, the_loss, trained)
    held = None if validation is None else _tensors(*validation, the_loss, trained)
    trainee = _Model(trained, *data, the_loss, _penalty(trained, data[0], weight_decay, beta), held)
    seconds = descend(trainee, SGD() if method is None else method, plan)
    if trainee.best is not None:
        trained.load_state_dict(trainee.best)
    return ModelRun(trained.eval(), np.array(trainee.seen), None if held is None else np.array(trainee.scores), seconds)


def evaluate(model: nn.Module, X: npt.ArrayLike | Tensor) -> FloatArray:
    """The outputs (n, C) of a module in evaluation mode, batch by batch, for inputs X (n, ...). The module stays as it is."""
    place, training = next(model.parameters()), model.training
    model.eval()
    with torch.no_grad():
        outputs = [model(rows.to(place)).cpu().double() for rows in torch.split(torch.as_tensor(X), BATCH)]
    model.train(training)
    values: FloatArray = torch.cat(outputs).numpy()
    return values


class _Model:
    """A module as a trainee: one start, which takes the statistics of its batches."""

    def __init__(self, model: nn.Module, X: Tensor, y: Tensor, loss: Loss, penalty: Penalty, held: tuple[Tensor, Tensor] | None) -> None:
        self.model, self.X, self.y, self.loss, self.penalty, self.held = model, X, y, loss, penalty, held
        self.samples = len(X)
        self.best: dict[str, Any] | None = None
        self.sum: Tensor | float = 0.0  # of the objectives of this epoch's batches
        self.seen: list[float] = []
        self.scores: list[float] = []

    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def objective(self, rows: Tensor | None) -> Tensor:
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        outputs = self.model.train()(X).reshape(1, *y.shape)
        value = torch_loss(self.loss, outputs, y) / len(X) + self.penalty()
        self.sum = self.sum + value.detach() * len(X)
        return value

    def assess(self, values: Tensor | None) -> Tensor:
        """Without a validation set a later iterate counts as a better one."""
        if values is not None or isinstance(self.sum, Tensor):
            self.seen.append(float(self.sum / self.samples if values is None else values))
        self.sum = 0.0
        if self.held is None:
            return torch.tensor([-float(len(self.seen))])
        X, y = self.held
        outputs = torch.as_tensor(evaluate(self.model, X)).reshape(1, *y.shape)
        self.scores.append(float(torch_loss(self.loss, outputs, y.cpu().double())) / len(X))
        return torch.tensor([self.scores[-1]])

    def keep(self, better: Tensor) -> None:
        if self.held is not None and bool(better):
            self.best = copy.deepcopy(self.model.state_dict())


def _tensors(X: npt.ArrayLike | Tensor, y: npt.ArrayLike, loss: Loss, model: nn.Module) -> tuple[Tensor, Tensor]:
    place = next(model.parameters(), None)
    if place is None:
        raise InputError("model has no parameters to train: pass a module with layers, such as nn.Sequential(nn.Linear(...), ...)")
    inputs = torch.as_tensor(X).to(place)
    if inputs.dim() < 2 or len(inputs) < 2 or not bool(torch.isfinite(inputs).all()):
        raise InputError(f"X has shape {tuple(inputs.shape)}, or NaN or infinity: pass at least two samples (n, ...) of finite numbers")
    return inputs, torch.as_tensor(loss.check(check_targets(y, len(inputs)))).to(place)


def _penalty(model: nn.Module, X: Tensor, weight_decay: float, beta: float | None) -> Penalty:
    """The penalty of the mean loss, by the table of `docs/conventions.md` where it is that of the convex program."""
    if beta is not None and weight_decay:
        raise InputError(f"beta = {beta} and weight_decay = {weight_decay} are two penalties: give one of them")
    if beta is None:
        if not 0.0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay = {weight_decay} is not a number from 0 up: pass one, such as 1e-4")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return lambda: 0.5 * weight_decay * _squares(parameters) if weight_decay else 0.0
    strength = check_positive(beta, "beta")
    norms = [norm for norm in model.modules() if isinstance(norm, NORMS) and norm.affine]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not norms or not layers:
        raise InputError("model has no affine batch normalisation, or no Linear layer after it: give weight_decay in place of beta")
    rows = _rows_of_a_sample(model, norms, X[:2])
    affine = [(rows[norm], [norm.weight, norm.bias]) for norm in norms]
    last = [layers[-1].weight]
    return lambda: 0.5 * strength * (sum(k * _squares(pair) for k, pair in affine) + _squares(last) / len(X))


def _squares(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def _rows_of_a_sample(model: nn.Module, norms: Sequence[nn.Module], X: Tensor) -> dict[nn.Module, int]:
    """How many rows of its input each norm sees for one sample: 1, or the pixels of an image."""
    rows: dict[nn.Module, int] = {}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows[norm] = inputs[0].numel() // (len(X) * inputs[0].shape[1])

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    evaluate(model, X)
    for hook in hooks:
        hook.remove()
    return rows

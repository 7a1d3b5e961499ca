"""An optimiser for networks with batch normalisation that moves directions and lengths of the weights apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node, Tracer

from convexbn.validation import InputError, check_count, check_positive

Pair = tuple[nn.Module, nn.Module]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ROLES = ("direction", "length", "remaining")


class DecoupledSGD(torch.optim.Optimizer):
    """Stochastic gradient descent on a loss f with the directions and lengths of batch-normalised neurons as its variables.

    A neuron g_j BN(x^T w_j) doesn't change with the scale of w_j. Its variables are the direction v_j = w_j / ||w_j|| on the unit
    sphere, a row of the weight of a linear or convolutional layer, and the length g_j, the weight of the batch normalisation
    that follows. With the gradients of f,

        v  <-  (v - direction_lr ||w|| P grad_w) / ||.||,    P = I - v v^T,        w  <-  ||w|| v,
        g  <-  g - length_lr grad_g,

    so neither the trajectory of the network nor a good rate depends on the scale of the initial weights, beyond the epsilon of
    batch normalisation. The norms of the rows stay what they are. All other parameters, batch normalisation's biases among
    them, follow plain gradients. It is the idea of GDNP and not its theorem: lengths take gradient steps instead of bisection,
    with `length_steps` above 1 several of them for each step of the directions.

    Parameters
    ----------
    model : whose parameters are optimised
    direction_lr : of the directions; without unit, roughly the angle in radian for a gradient of 1
    length_lr, lr : of the lengths and of the remaining parameters; None takes `direction_lr`
    momentum : in [0, 1), for all of them; that of a direction is kept orthogonal to it
    weight_decay : lambda of (lambda/2) ||p||^2 for lengths and remaining parameters; the norm of a direction has no effect to decay
    length_steps : steps of the lengths for each `step`, which then needs a closure; the first one moves everything
    pairs : (layer, batch normalisation) modules; None finds them by `normalised_pairs`
    remaining : the other parameters to move; None stands for all that require a gradient

    Raises
    ------
    InputError
        For unusable arguments, and for a model without a pair.

    The three `param_groups` carry their "role" and their number of "steps", and have learning rates of their own, which schedulers
    change as usual. Source: Kohler et al. 2019, for the idea.
    """

    def __init__(
        self,
        model: nn.Module,
        direction_lr: float,
        *,
        length_lr: float | None = None,
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        length_steps: int = 1,
        pairs: Sequence[Pair] | None = None,
        remaining: Iterable[torch.Tensor] | None = None,
    ) -> None:
        found = normalised_pairs(model) if pairs is None else [_checked(layer, norm) for layer, norm in pairs]
        if not found:
            raise InputError("model has no linear or convolutional layer followed by batch normalisation: take torch.optim.SGD")
        if not 0.0 <= momentum < 1.0:
            raise InputError(f"momentum = {momentum} is not in [0, 1): pass for instance 0.9")
        if not 0.0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay = {weight_decay} is negative or not finite: pass for instance 1e-4")
        check_count(length_steps, "length_steps")
        directions = [layer.weight for layer, _ in found]
        lengths = [norm.weight for _, norm in found if norm.weight is not None]
        taken = {id(parameter) for parameter in directions + lengths}
        if len(taken) < len(directions) + len(lengths):
            raise InputError("pairs share a parameter: give each layer and each batch normalisation once")
        if remaining is None:
            remaining = (parameter for parameter in model.parameters() if parameter.requires_grad)
        rest = [parameter for parameter in remaining if id(parameter) not in taken]
        given = {"direction_lr": direction_lr, "length_lr": length_lr, "lr": lr}
        rates = [check_positive(direction_lr if rate is None else rate, name) for name, rate in given.items()]
        groups = [
            {"params": parameters, "lr": rate, "role": role}
            for parameters, rate, role in zip((directions, lengths, rest), rates, ROLES, strict=True)
        ]
        groups[0]["weight_decay"], groups[1]["steps"] = 0.0, length_steps
        defaults = {"lr": rates[2], "momentum": momentum, "weight_decay": weight_decay, "role": "remaining", "steps": 1}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters once, and the lengths `length_steps` - 1 times more.

        Parameters
        ----------
        closure : clears the gradients, computes the loss and its gradients, and returns the loss

        Returns
        -------
        The loss of the first call of the closure, or None.

        Raises
        ------
        InputError
            Without a closure where `length_steps` > 1.
        """
        rounds = max(group["steps"] for group in self.param_groups)
        if closure is None and rounds > 1:
            raise InputError("closure is None, but length_steps > 1 needs new gradients: pass a closure")
        losses = []
        for done in range(rounds):
            losses.append(_evaluated(closure))
            for group in self.param_groups:
                if group["steps"] > done:
                    self._move(group)
        return losses[0]

    def _move(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if group["role"] == "direction":
                _turned(parameter, self.state[parameter], group["lr"], group["momentum"])
            else:
                _shifted(parameter, self.state[parameter], group["lr"], group["momentum"], group["weight_decay"])


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _turned(weight: torch.Tensor, state: dict[str, Any], rate: float, momentum: float) -> None:
    """One step of each row of `weight` on its sphere; rows that are 0 have no direction and stay."""
    assert weight.grad is not None
    norm = _inner(weight, weight).sqrt()
    unit = weight / torch.where(norm > 0, norm, 1.0)
    velocity = _tangent(unit, norm * weight.grad)
    if momentum:
        velocity += momentum * _tangent(unit, state.get("velocity", torch.zeros_like(weight)))
        state["velocity"] = velocity
    moved = unit - rate * velocity
    size = _inner(moved, moved).sqrt()
    weight.copy_(norm * moved / torch.where(size > 0, size, 1.0))


def _shifted(parameter: torch.Tensor, state: dict[str, Any], rate: float, momentum: float, decay: float) -> None:
    assert parameter.grad is not None
    velocity = parameter.grad + decay * parameter
    if momentum:
        velocity = velocity + momentum * state.get("velocity", torch.zeros_like(parameter))
        state["velocity"] = velocity
    parameter.sub_(rate * velocity)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner product of each row, all axes but the first, which stay with length 1."""
    return (a * b).sum(dim=tuple(range(1, a.dim())), keepdim=True)


def _tangent(unit: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return vector - _inner(unit, vector) * unit


class _Tracer(Tracer):
    """Looks into no layer and no batch normalisation, subclasses such as full normalisation included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS + NORMS) or super().is_leaf_module(m, module_qualified_name)


def normalised_pairs(model: nn.Module) -> list[Pair]:
    """The (layer, batch normalisation) modules of a model whose layer feeds the batch normalisation and nothing else.

    Read from the graph that `torch.fx` finds, so the order in which modules are defined doesn't matter. Layers
    that are called or share their weight more than once are left out, as their scale can have an effect.

    Parameters
    ----------
    model : of linear, convolutional and other layers

    Raises
    ------
    InputError
        For a model whose forward pass depends on its data and can't be traced.
    """
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever the model's own code raises on a proxy
        raise InputError(f"model can't be traced ({error}): give its pairs of a layer and a batch normalisation") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    called = {node: modules[node.target] for node in nodes if node.op == "call_module"}
    uses = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    pairs = []
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        if isinstance(before, Node) and before in called and len(before.users) == 1:
            layer = called[before]
            once = all(sum(other is module for other in called.values()) == 1 for module in (layer, norm))
            if isinstance(layer, LAYERS) and isinstance(norm, NORMS) and once and uses.count(id(layer.weight)) == 1:
                pairs.append(_checked(layer, norm))
    return pairs


def _checked(layer: nn.Module, norm: nn.Module) -> Pair:
    """The pair, or an `InputError` where batch normalisation doesn't take the layer's outputs."""
    if not isinstance(layer, LAYERS) or not isinstance(norm, NORMS):
        raise InputError(f"pairs has ({type(layer).__name__}, {type(norm).__name__}): give a Linear or Conv and a BatchNorm module")
    if len(layer.weight) != norm.num_features:
        raise InputError(f"pairs has a layer of {len(layer.weight)} outputs before batch normalisation of {norm.num_features}: match them")
    return layer, norm

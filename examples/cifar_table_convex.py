"""The rows of `cifar_table.py` that are trained by convex programs, on one-hot targets, and exported to PyTorch."""

from typing import Any, TypeVar

import numpy as np
from torch import nn

from cifar_table_data import Part, Settings, Trained, WithMirror, coordinates, principal
from convexbn import (
    Certificate,
    Evidence,
    Fit,
    GatedFit,
    GatedSolver,
    LocalGates,
    Network,
    Patches,
    SlidingFrankWolfe,
    beta_max,
    fit_convex_bn,
    fit_gated_bn,
    to_torch,
)
from convexbn.features import random_layers
from convexbn.solvers.masked import MAX_MEMORY

LOOSE = 0.5  # relative gap: a proof that is looser says less than the estimate
AnyFit = TypeVar("AnyFit", Fit, GatedFit)
FOREVER = 1e9  # seconds: steps are counted, so that a busy machine has the same table


def trained(model: nn.Module, certificate: Certificate) -> Trained:
    """With the certificate's bound and its word; where the proof is loose, with the estimate, which is called that."""
    loose = certificate.relative_gap > LOOSE
    bound, evidence = (certificate.estimate, Evidence.ESTIMATED) if loose else (certificate.bound, certificate.evidence)
    return Trained(model, certificate.objective, bound, evidence.value)


def uninterrupted(fit: AnyFit) -> AnyFit:
    """A fit that Ctrl-C ended early makes no row: the next run goes on with it."""
    if fit.interrupted:
        raise KeyboardInterrupt
    return fit


def gated(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """The gated program over random gates that lean to strong directions, beta a fraction of its beta_max. Not a ReLU network.

    With `directions`, on coordinates along so many principal directions of the pixels: the leading `rank` of them are those of the
    pixels, and cheaper to come by. With `window` too, gates look at a square window each. With `mirrored` too, on images and their mirror
    images, whose outputs are averaged: two patches of an image. With `patch`, on the patches of the images.
    """
    before = principal(part, settings["directions"]) if "directions" in settings else nn.Sequential(nn.Flatten())
    reading: dict[str, Any] = {}
    gates: Any = settings["gates"]
    if "window" in settings:
        gates = LocalGates(gates, part.images.shape[1:], settings["window"], before[1].weight.numpy())
    if settings.get("mirrored"):
        reading["patches"] = Patches((1, before[1].out_features))
        before = nn.Sequential(WithMirror(before))
    elif "patch" in settings:
        reading["patches"] = Patches(settings["patch"], settings["stride"])
        before = nn.Sequential(nn.Identity())
    path = part.cached("gated", *settings.values(), seed, ".npz")
    fit = fit_gated_bn(
        coordinates(before, part).numpy() if reading else coordinates(before, part).double().numpy(),
        part.targets,
        gates=gates,
        fraction=settings["fraction"],
        loss=settings["loss"],
        rank=settings["rank"],
        lean=settings["lean"],
        solver=GatedSolver(settings["tolerance"], settings["iterations"], FOREVER, precision="float32", checkpoint=path, verbose=True),
        seed=seed,
        device=device,
        max_memory=settings.get("memory", MAX_MEMORY),
        **reading,
    )
    network = uninterrupted(fit).to_torch()
    path.unlink(missing_ok=True)
    return trained(nn.Sequential(*before.double(), network), fit.certificate)


def all_arrangements(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """The ReLU network over all arrangements, on pixels or, with `patch`, on the patches of the images."""
    data: Any = part.images / 255.0 if "patch" in settings else part.pixels
    reading = {"patches": Patches(settings["patch"], settings["stride"])} if "patch" in settings else {}
    fit = fit_convex_bn(
        data,
        part.targets,
        beta=settings["fraction"] * beta_max(data, part.targets, rank=settings.get("rank"), **reading),
        solver=SlidingFrankWolfe(settings["tolerance"], settings["rounds"], settings["seconds"], seed=seed),
        proof_seconds=settings["proof_seconds"],
        verbose=True,
        rank=settings.get("rank"),
        **reading,
    )
    flatten = [] if "patch" in settings else [nn.Flatten()]
    return trained(nn.Sequential(*flatten, *uninterrupted(fit).to_torch()), fit.certificate)


def sampled_arrangements(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """The ReLU network over sampled arrangements, a program for each class: one against the rest, which is another, larger penalty.

    Objectives and bounds add up. The networks become one, whose outputs are theirs. The leading principal directions are found once.
    """
    before = principal(part, settings["rank"])
    rows = coordinates(before, part).double().numpy()
    fits = [
        uninterrupted(
            fit_convex_bn(
                rows,
                targets,
                beta=settings["fraction"] * beta_max(rows, targets) or 1.0,  # 0 for a class without images
                arrangements=settings["arrangements"],
                seed=seed,
                verbose=True,
            )
        )
        for targets in part.targets.T
    ]
    objective, bound = (sum(getattr(fit.certificate, name) for fit in fits) for name in ("objective", "bound"))
    model = nn.Sequential(*before.double(), *to_torch(side_by_side([fit.network for fit in fits])))
    return Trained(model, objective, bound, fits[0].certificate.evidence.value)


def side_by_side(networks: list[Network]) -> Network:
    """One network with an output for each of these, which have one."""
    columns = {name: np.concatenate([getattr(n, name) for n in networks]) for name in ("weights", "centre", "norm", "gain", "shift")}
    outputs = np.zeros((len(columns["gain"]), len(networks)))
    start = 0
    for output, network in enumerate(networks):
        outputs[start : start + len(network.outputs), output] = network.outputs[:, 0]
        start += len(network.outputs)
    return Network(**columns, outputs=outputs, samples=networks[0].samples)


def closed_form(part: Part, settings: Settings, seed: int, device: str) -> Trained:
    """The optimum at n <= d, of any depth: the last two layers in closed form, on random layers below them."""
    below = [settings["width"]] * (settings["depth"] - 2)
    pixels = part.pixels
    features = random_layers(pixels, below, seed=seed) if below else None
    fit = fit_convex_bn(pixels, part.targets, beta=part.square_beta(settings["fraction"]), features=features, solver="closed form")
    return trained(nn.Sequential(nn.Flatten(), *uninterrupted(fit).to_torch()), fit.certificate)

"""A device that PyTorch doesn't have is refused by name, before any work is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convexbn import ActiveSet, InputError, fit_gated_bn, fit_gated_path
from convexbn.devices import check_device
from convexbn.training import train_model, train_networks

X, Y = np.random.default_rng(0).standard_normal((20, 3)), np.ones(20)
MISSING = "cuda:99"


def test_the_cpu_is_there_by_either_name():
    assert check_device("cpu") == check_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("device", [MISSING, "meta", "nonsense", 3, None])
def test_a_device_that_can_not_compute_is_refused_by_name(device):
    with pytest.raises(InputError, match=f"^device = '{device}' can't be used here .*: pass 'cpu'"):
        check_device(device)


@pytest.mark.parametrize(
    "fit",
    [
        lambda: ActiveSet(device=MISSING),
        lambda: fit_gated_bn(X, Y, device=MISSING),
        lambda: fit_gated_path(X, Y, device=MISSING),
        lambda: train_networks(X, Y, beta=1.0, device=MISSING),
        lambda: train_model(nn.Linear(3, 1), X, Y, loss="squared", device=MISSING),
    ],
)
def test_whatever_takes_a_device_says_so(fit):
    with pytest.raises(InputError, match="device = 'cuda:99'"):
        fit()

"""Where the parts of a program lie: in one process, or arrangements and samples spread over the processes of torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from convexbn.interrupts import held_interrupts
from convexbn.validation import FloatArray, check_data
from convexbn.whitening import Whitening, check_rank, kept_of, powers_of_two

if TYPE_CHECKING:
    import torch
    import torch.distributed

Value = TypeVar("Value")


@dataclass(frozen=True)
class Shards:
    """Sums over the processes that hold other arrangements of the same samples, and other samples of the same arrangements.

    Attributes
    ----------
    arrangements : the group of those with the same samples, or None where this process has all arrangements
    samples : the group of those with the same arrangements, or None where this process has all samples
    device : where single numbers are summed; a program sets it to its own, as NCCL knows no other
    """

    arrangements: torch.distributed.ProcessGroup | None = None
    samples: torch.distributed.ProcessGroup | None = None
    device: str = "cpu"

    @property
    def alone(self) -> bool:
        """Whether this process has everything."""
        return self.arrangements is None and self.samples is None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes finish, though one of them gets Ctrl-C: at the end all raise `KeyboardInterrupt`, and none waits."""
        with held_interrupts(not self.alone) as came:
            yield
            if self.total_over_samples(self.total_over_arrangements(float(came()))):
                raise KeyboardInterrupt

    def over_arrangements(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over arrangements of what each process has of it."""
        return self.sums_over_arrangements(tensor)[0]

    def over_samples(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over samples of what each process has of it."""
        return self.sums_over_samples(tensor)[0]

    def sums_over_arrangements(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Several such sums, in one all-reduce."""
        return _sums(tensors, self.arrangements)

    def sums_over_samples(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Several such sums, in one all-reduce."""
        return _sums(tensors, self.samples)

    def total_over_arrangements(self, value: float) -> float:
        """The same for a number."""
        return _totals((value,), self.arrangements, self.device)[0]

    def total_over_samples(self, value: float) -> float:
        """The same for a number."""
        return self.totals_over_samples(value)[0]

    def totals_over_samples(self, *values: float) -> list[float]:
        """The same for several numbers, in one all-reduce."""
        return _totals(values, self.samples, self.device)

    def each_over_arrangements(self, *values: float) -> FloatArray:
        """(processes, values) the numbers of every process, in one all-reduce."""
        rank, size = self.place
        each = np.zeros((size, len(values)))
        each[rank] = values
        return np.reshape(_totals(each.ravel().tolist(), self.arrangements, self.device), each.shape)

    def count(self, which: torch.Tensor) -> int:
        """How many of a boolean tensor are true, over arrangements."""
        return round(self.total_over_arrangements(float(which.sum())))

    def largest(self, values: torch.Tensor) -> float:
        """The largest of the processes' values, none of them negative, over arrangements; 0 where there are none."""
        return float(self.each_over_arrangements(float(values.double().amax()) if len(values) else 0.0).max())

    @property
    def place(self) -> tuple[int, int]:
        """Which of the processes over arrangements this is, and how many they are."""
        import torch

        if self.arrangements is None:
            return 0, 1
        return torch.distributed.get_rank(self.arrangements), torch.distributed.get_world_size(self.arrangements)

    def part_of(self, arrangements: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of the rows of an array that all processes have, one for each arrangement, those of this process: every so many."""
        rank, size = self.place
        return arrangements[rank::size]

    def agreed(self, value: Value) -> Value:
        """What the first of the processes over arrangements has: where rounding could part them."""
        import torch

        if self.arrangements is None:
            return value
        held = [value]
        first = torch.distributed.get_global_rank(self.arrangements, 0)
        torch.distributed.broadcast_object_list(held, src=first, group=self.arrangements)
        return held[0]

    def gather(self, arrays: tuple[npt.NDArray[Any], ...]) -> tuple[npt.NDArray[Any], ...]:
        """Arrays with a row for each arrangement, of all processes, one below the other."""
        import torch

        if self.arrangements is None:
            return arrays
        parts: list[Any] = [None] * self.place[1]
        torch.distributed.all_gather_object(parts, arrays, group=self.arrangements)
        return tuple(np.concatenate(same) for same in zip(*parts, strict=True))


def _sums(tensors: tuple[torch.Tensor, ...], group: torch.distributed.ProcessGroup | None) -> tuple[torch.Tensor, ...]:
    import torch

    if group is None:
        return tensors
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(packed, group=group)
    parts = torch.split(packed, [tensor.numel() for tensor in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


def _totals(values: Sequence[float], group: torch.distributed.ProcessGroup | None, device: str) -> list[float]:
    import torch

    if group is None:
        return list(values)
    totals: list[float] = _sums((torch.tensor(values, dtype=torch.float64, device=device),), group)[0].tolist()
    return totals


def whiten_shards(
    X: FloatArray, group: torch.distributed.ProcessGroup, *, rank: float | None = None, tolerance: float = 1e-10, device: str = "cpu"
) -> Whitening:
    """Whitening of data whose rows are spread over processes: Pi X = U Sigma V^T by a QR decomposition in two levels (TSQR).

    Each process factors its centred rows, X_p = Q_p R_p; all R_p (d, d) are gathered and factored again, [R_1; R_2; ...] = Q R, and
    R = U_R Sigma V^T gives this process' rows Q_p Q[p] U_R of U, orthonormal over all processes to rounding. Source: Demmel, Grigori,
    Hoemmen and Langou 2012. What travels: the means, and d^2 numbers from each process.

    Parameters
    ----------
    X : (n_p, d) this process' rows
    group : of the processes that hold the others
    rank, tolerance : as in `whiten`
    device : where the group's backend takes tensors: "cuda" for NCCL. The decompositions are on the host
    """
    import torch

    data, wanted = check_data(X, samples=1), check_rank(rank)
    whole, *sums = _totals((len(data), *data.sum(axis=0)), group, device)
    samples, mean = round(whole), np.array(sums) / whole
    spread = torch.as_tensor(np.max(np.abs(data - mean), axis=0), device=device)
    torch.distributed.all_reduce(spread, op=torch.distributed.ReduceOp.MAX, group=group)
    scale = powers_of_two(spread.cpu().numpy())
    if wanted is not None:
        scale = np.full_like(scale, scale.max())
    local, triangle = np.linalg.qr((data - mean) / scale)
    parts: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(parts, triangle, group=group)
    joint, top = np.linalg.qr(np.vstack(parts))
    first = sum(len(part) for part in parts[: torch.distributed.get_rank(group)])
    left, values, right = np.linalg.svd(top)
    kept = kept_of(values, wanted, min(int(np.sum(values > tolerance * values[0])), samples - 1))
    rows = local @ (joint[first : first + len(triangle)] @ left[:, :kept])
    basis = np.column_stack([rows, np.full(len(data), 1.0 / np.sqrt(samples))])
    energy = float(np.sum(values[:kept] ** 2) / np.sum(values**2))
    return Whitening(mean, scale, np.ascontiguousarray(right[:kept].T), values[:kept], basis, energy=energy, whole=samples)

"""Where the parts of a gated program lie: in one process, or arrangements and samples spread over the processes of torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed


@dataclass(frozen=True)
class Shards:
    """Sums over the processes that hold other arrangements of the same samples, and other samples of the same arrangements.

    Attributes
    ----------
    arrangements : the group of those with the same samples, or None where this process has all arrangements
    samples : the group of those with the same arrangements, or None where this process has all samples
    """

    arrangements: torch.distributed.ProcessGroup | None = None
    samples: torch.distributed.ProcessGroup | None = None

    def over_arrangements(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over arrangements of what each process has of it."""
        return _sum(tensor, self.arrangements)

    def over_samples(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over samples of what each process has of it."""
        return _sum(tensor, self.samples)

    def total_over_arrangements(self, value: float) -> float:
        """The same for a number."""
        return _total(value, self.arrangements)

    def total_over_samples(self, value: float) -> float:
        """The same for a number."""
        return _total(value, self.samples)

    def largest(self, value: float) -> float:
        """The largest of the processes' numbers, over arrangements."""
        import torch

        if self.arrangements is None:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=self.arrangements)
        return float(number)


def _sum(tensor: torch.Tensor, group: torch.distributed.ProcessGroup | None) -> torch.Tensor:
    import torch

    if group is not None:
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor, group=group)
    return tensor


def _total(value: float, group: torch.distributed.ProcessGroup | None) -> float:
    import torch

    return value if group is None else float(_sum(torch.tensor([value], dtype=torch.float64), group))

"""The gated network as a PyTorch module: the one file of the convex side that is imported only where PyTorch is wanted."""

import torch


class GatedModule(torch.nn.Module):
    """f(x) = sum_i 1[phi(x)^T g_i >= 0] S_i^T phi(x), phi(x) = W x + c: a gated network, not a ReLU network.

    Parameters
    ----------
    features, columns, gates, outputs : d, r+1, P and C

    Attributes
    ----------
    whiten : (r+1, d) W and (r+1,) `constant` c, buffers: the whitening of the training data, its last row the constant 1/sqrt(n)
    gates : (P, r+1) buffer, the g_i
    weights : (P, r+1, C) parameter, the S_i
    """

    whiten: torch.Tensor
    constant: torch.Tensor
    gates: torch.Tensor

    def __init__(self, features: int, columns: int, gates: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("whiten", torch.zeros(columns, features))
        self.register_buffer("constant", torch.zeros(columns))
        self.register_buffer("gates", torch.zeros(gates, columns))
        self.weights = torch.nn.Parameter(torch.zeros(gates, columns, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, C) outputs of raw x (batch, d)."""
        basis = x @ self.whiten.T + self.constant
        open_gates = (basis @ self.gates.T >= 0).to(basis.dtype)
        of_each = (open_gates @ self.weights.flatten(1)).view(x.shape[0], basis.shape[1], -1)
        return torch.bmm(basis.unsqueeze(1), of_each).squeeze(1)


class GatedConvolution(torch.nn.Module):
    """A gated module on the patches of images, its outputs averaged or summed over each image.

    Parameters
    ----------
    head : of the patches, as rows of c p_h p_w numbers
    size, stride, padding : (height, width) each, as in `torch.nn.Unfold`
    pooling : "average" or "sum"
    """

    def __init__(self, head: GatedModule, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], pooling: str) -> None:
        super().__init__()
        self.cut, self.head, self.pooling = torch.nn.Unfold(size, stride=stride, padding=padding), head, pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, C) outputs of images (batch, c, h, w)."""
        rows = self.cut(images).mT
        of_each: torch.Tensor = self.head(rows.flatten(0, 1)).view(images.shape[0], rows.shape[1], -1)
        return of_each.mean(1) if self.pooling == "average" else of_each.sum(1)

"""The non-convex side: training the same network with the same objective by gradient methods. Needs PyTorch."""

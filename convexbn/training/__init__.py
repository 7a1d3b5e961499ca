"""The non-convex side: training the same network with the same objective by gradient methods. Needs PyTorch."""

from convexbn.training.adam import TrainingRun, train_adam

__all__ = ["TrainingRun", "train_adam"]

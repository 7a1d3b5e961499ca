"""The scikit-learn estimators: thin shells around `fit_convex_bn`, and those that choose beta by cross-validation."""

from convexbn.estimators.cross_validated import ConvexBNClassifierCV, ConvexBNRegressorCV
from convexbn.estimators.plain import ConvexBNClassifier, ConvexBNRegressor

__all__ = ["ConvexBNClassifier", "ConvexBNClassifierCV", "ConvexBNRegressor", "ConvexBNRegressorCV"]

"""Networks whose batch normalisation follows the ReLU: their convex program, its closed form, its certificate."""

from convexbn.post_bn.fit import PostFit, certify_post_bn, fit_post_bn

__all__ = ["PostFit", "certify_post_bn", "fit_post_bn"]

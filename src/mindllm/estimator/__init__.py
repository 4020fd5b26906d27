"""A scikit-learn estimator on images, for use without a store."""

"""thinktwice: train a click-through-rate model and serve it so that it thinks twice only when it is unsure."""

__version__ = "0.1.0"

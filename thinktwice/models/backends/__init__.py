"""Ways to compute one model's scores: the same numbers to a stated tolerance, at different cost."""

from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, State, verify_sizes
from thinktwice.models.backends.choose import Choice, choose_backend, parity_of
from thinktwice.models.backends.store import open_backend, save_choice

__all__ = [
    "Backend",
    "Choice",
    "Eager",
    "MakeBackend",
    "State",
    "choose_backend",
    "open_backend",
    "parity_of",
    "save_choice",
    "verify_sizes",
]

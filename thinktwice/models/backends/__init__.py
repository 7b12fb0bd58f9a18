"""Ways to compute one model's scores: the same numbers to a stated tolerance, at different cost."""

from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, State, verify_sizes
from thinktwice.models.backends.choose import Choice, choose_backend, parity_of
from thinktwice.models.backends.store import open_backend, open_member, save_choice, save_member

__all__ = [
    "Backend",
    "Choice",
    "Eager",
    "MakeBackend",
    "State",
    "choose_backend",
    "open_backend",
    "open_member",
    "parity_of",
    "save_choice",
    "save_member",
    "verify_sizes",
]

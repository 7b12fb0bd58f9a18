"""Thinking twice: reliability from counts, the trigger, the paths, and the engine that puts them together."""

from thinktwice.testtime.config import FitConfig, TestTimeConfig
from thinktwice.testtime.engine import Engine, Scored
from thinktwice.testtime.fit import FitResult, fit_test_time
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import TestTime, load_test_time, save_test_time

__all__ = [
    "Engine",
    "FitConfig",
    "FitResult",
    "Reliability",
    "Scored",
    "TestTime",
    "TestTimeConfig",
    "fit_test_time",
    "load_test_time",
    "save_test_time",
]

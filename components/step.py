"""The one way to declare a pipeline step.

A step is a lightweight KFP component whose code is already installed in its image: nothing is installed with pip at
run time, so a step starts fast, works without a network and never gets another version of a library than the lock names.
The body of a step is a thin adapter; what it does lives in the library.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

# KFP's local runner looks for the word "python" in the image name before it trusts a step to be plain Python.
IMAGE = "ghcr.io/thinktwice/thinktwice-python:0.1.0"

#: Put behind the source of a step. Under the local runner its error then reaches the user by a record; on a cluster
#: nobody asks for one, and the error is in the log of the step as always.
RECORDED = """
from thinktwice.progress import recorded

{name} = recorded({name})
"""


def step(function: Callable[..., Any]) -> Any:
    """Make a pipeline step of a function."""
    component = dsl.component(function, base_image=IMAGE, install_kfp_package=False, packages_to_install=[])
    # KFP ships the source of the function alone, without its decorators: the last word of the command.
    command = component.component_spec.implementation.container.command
    command[-1] += RECORDED.format(name=function.__name__)
    return component

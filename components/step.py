"""Declaration of pipeline steps.

A step is a lightweight KFP component whose code is already installed in its image: nothing is installed with pip at
run time, so a step starts fast, works without a network and always has the library versions of the lock.
The body of a step is a thin adapter; the logic is in the library.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

# KFP's local runner treats a step as plain Python only if the image name contains "python".
IMAGE = "ghcr.io/thinktwice/thinktwice-python:0.1.0"

#: Appended to the source of a step. Under the local runner an error is then recorded for the user; on a cluster nothing is
#: recorded, and the error is in the log of the step as usual.
RECORDED = """
from thinktwice.progress import recorded

{name} = recorded({name})
"""


def step(function: Callable[..., Any]) -> Any:
    """Make a pipeline step from a function."""
    component = dsl.component(function, base_image=IMAGE, install_kfp_package=False, packages_to_install=[])
    # The last element of the command is the source of the function, without its decorators.
    command = component.component_spec.implementation.container.command
    command[-1] += RECORDED.format(name=function.__name__)
    return component

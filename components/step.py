"""The one way to declare a pipeline step.

A step is a lightweight KFP component whose code is already installed in its image: nothing is installed with pip at
run time, so a step starts fast, works without a network and never gets another version of a library than the lock names.
The body of a step is a thin adapter; what it does lives in the library.
"""

from functools import partial

from kfp import dsl

# KFP's local runner looks for the word "python" in the image name before it trusts a step to be plain Python.
IMAGE = "ghcr.io/thinktwice/thinktwice-python:0.1.0"

step = partial(dsl.component, base_image=IMAGE, install_kfp_package=False, packages_to_install=[])

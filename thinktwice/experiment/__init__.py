"""Pure functions of online experiments: file, assignment, routes, log join, analysis, decision.

Nothing in this package starts a process or depends on a platform: the gateway runs what it renders, the pipeline calls the
same functions.
"""

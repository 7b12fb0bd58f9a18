"""Online experiments, the pure part: file, assignment, routes, log join, analysis, decision.

Nothing here starts a process or knows a platform: the gateway runs what is rendered here, the pipeline calls the same functions.
"""

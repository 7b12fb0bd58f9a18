"""The feedback service: impressions and clicks in, counters and sequences up to this instant out to the online store.

:mod:`~serving.feedback.event_log` keeps every accepted event, in the order of acceptance; the log alone defines all else.
:mod:`~serving.feedback.join` turns its records into outcomes, :mod:`~serving.feedback.book` keeps what it knows and what has to be
pushed, :mod:`~serving.feedback.online` pushes through Feast, :mod:`~serving.feedback.service` runs these in two threads.
"""

"""The feedback service: receives impressions and clicks, and pushes up-to-date counters and sequences to the online store.

:mod:`~serving.feedback.event_log` stores every accepted event, in the order of acceptance; everything else is derived from the log.
:mod:`~serving.feedback.join` turns its records into outcomes, :mod:`~serving.feedback.book` stores the derived state and the rows to
push, :mod:`~serving.feedback.online` pushes through Feast, :mod:`~serving.feedback.service` runs these in two threads.
"""

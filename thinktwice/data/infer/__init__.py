"""A first schema file for a log, from its columns alone; see :func:`thinktwice.data.infer.infer.infer_schema`."""

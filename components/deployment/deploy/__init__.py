"""The step ``deploy``: deploy a packaged model."""

"""The step that puts a packaged model into production."""

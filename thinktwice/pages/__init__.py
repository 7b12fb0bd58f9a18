"""Shared kit for HTML pages and charts: templates that escape every value, one style, no external resources, no scripts.

A page is a Jinja2 template next to the code that fills it: it extends ``page.html`` and uses the macros of ``parts.html``.
Charts are
inline SVG (:mod:`thinktwice.pages.drawing`).
"""

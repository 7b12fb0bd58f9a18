"""The one kit for HTML pages and charts: templates that escape every value, one style, nothing to load, no script.

A page is a Jinja2 template beside the code that fills it: it extends ``page.html`` and draws with the macros of ``parts.html``. Charts are
inline SVG (:mod:`thinktwice.pages.drawing`).
"""

"""Statistics with numpy and scipy only, which all packages may use and which depend on none of them.

Functions raise ``ValueError`` for invalid arguments. Insufficient data (no unit, no variance, a number that is not finite)
give an estimate with a flag and never a silent number.
"""

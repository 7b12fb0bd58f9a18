"""Statistics on numpy and scipy alone: what any package may use and what depends on none.

Functions raise ``ValueError`` for arguments that make no sense. Data that cannot answer (no unit, no variance, a number that is
not finite) gives an estimate with a flag and never a silent number.
"""

"""Servers as child processes on this machine, on loopback."""

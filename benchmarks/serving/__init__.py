"""Overhead of serving, and servers under load."""

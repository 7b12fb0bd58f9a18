"""The second opinion on an uncertain row: feature paths, further trunks, or redefined features; one file per kind."""

from thinktwice.testtime.opinions import members, paths, redefine
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass

__all__ = ["EscalatedRows", "SecondPass", "members", "paths", "redefine"]

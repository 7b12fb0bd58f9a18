"""The second opinion on an unsure row: feature paths, further trunks, or redefined features; one file per kind."""

from thinktwice.testtime.opinions import members, paths, redefine
from thinktwice.testtime.opinions.asked import Asked, Opinion

__all__ = ["Asked", "Opinion", "members", "paths", "redefine"]

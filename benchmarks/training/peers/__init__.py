"""Peers: each in an environment of its own, in which the scripts of this folder train its models on frozen files."""

"""Deployable artefacts: the bundle, its archive, the signed release, and the champion that is served."""

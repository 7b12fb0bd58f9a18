"""The step that packs a blessed bundle into a TorchServe archive."""

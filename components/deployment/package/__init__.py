"""The step ``package``: pack a blessed bundle into a TorchServe archive."""

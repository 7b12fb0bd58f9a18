"""Steps that train: generative pre-training, then fine-tuning on clicks."""

"""What the report says about the model itself: is it good, did it overfit, which fields matter, where is it weak, what did
pre-training learn. Everything is measured here; the page only draws it."""

"""What serving costs beside the model, and what a server does under load."""

"""How often combinations of values came, in bounded memory."""

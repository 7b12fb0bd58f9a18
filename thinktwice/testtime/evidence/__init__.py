"""Evidence of a request turned into changes of its logits: counters for every row, retrieved outcomes for the escalated ones."""

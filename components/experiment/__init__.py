"""Steps of a look at a running experiment: collect, join, analyse, decide, apply."""

"""Where logs come from; :mod:`thinktwice.data.sources.registry` lists them."""

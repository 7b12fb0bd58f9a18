"""Sources of logs; :mod:`thinktwice.data.sources.registry` lists them."""

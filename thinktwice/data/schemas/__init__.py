"""The schema files of the built-in sources, one YAML file each."""

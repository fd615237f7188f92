"""YAML to sweep to trials. Nothing here imports torch: a sweep is validated and planned within a second."""

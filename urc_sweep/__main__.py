"""``python -m urc_sweep``."""

from urc_sweep.cli import main

main()

"""``python -m feathide``: the command line."""

from feathide.cli import main

main()

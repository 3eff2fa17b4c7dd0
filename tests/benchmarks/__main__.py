"""`python -m tests.benchmarks`, which `make bench` calls."""

from .run import main

main()

"""Settings after the paper's, each a module that runs: ``python -m experiments.configs.NAME --help``.

Each says what is the paper's or its public code's, and what is this project's.
"""

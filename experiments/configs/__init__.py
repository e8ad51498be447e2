"""The paper's settings, each a module that runs: ``python -m experiments.configs.NAME --help``."""

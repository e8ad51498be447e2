"""CREST: coresets for data-efficient training of deep networks, in JAX."""

"""Scripts that train networks with crest_jax and measure what it does."""

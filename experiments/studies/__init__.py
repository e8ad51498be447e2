"""Experiments; each names the table that it fills."""

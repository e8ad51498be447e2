"""Seconds and bytes; each names the table that it fills."""

"""Small settings of CREST for tests: the recommended ones, at all steps, with fields replaced."""

import dataclasses

from crest_jax import CrestConfig, ExclusionConfig


def exclusion(**fields):
    """The recommended exclusion with fields replaced."""
    return dataclasses.replace(ExclusionConfig.recommended(), **fields)


def settings(**fields):
    """The recommended settings at all steps, with fields replaced; ``exclusion`` may be a dict."""
    if isinstance(fields.get("exclusion"), dict):
        fields["exclusion"] = exclusion(**fields["exclusion"])
    base = CrestConfig.recommended(steps=1000)
    whole = dataclasses.replace(base, select_from=None, select_until=None, reference_step=None)
    size = fields.get("batch_size", whole.batch_size)
    defaults = {"subset_size": max(2 * size, 256)} if "subset_size" not in fields else {}
    return dataclasses.replace(whole, **(defaults | fields))

"""Small settings of CREST for tests: the recommended ones, at all steps, with fields replaced."""

import dataclasses

from crest_jax import CrestConfig, ExclusionConfig, RegionConfig


def exclusion(**fields):
    """The recommended exclusion with fields replaced."""
    return dataclasses.replace(ExclusionConfig.recommended(), **fields)


REGION = {field.name for field in dataclasses.fields(RegionConfig)}


def settings(**fields):
    """The recommended settings at all steps with medoids in regions, with fields replaced.

    ``exclusion`` may be a dict; fields of the region are named as those of the settings.
    """
    own = {name: fields.pop(name) for name in REGION & fields.keys()}
    fields.setdefault("region", RegionConfig(**own))
    fields.setdefault("picks", "medoids")
    return fresh_settings(**fields)


def fresh_settings(**fields):
    """The recommended settings at all steps, never paused, with fields replaced.

    ``exclusion`` may be a dict.
    """
    if isinstance(fields.get("exclusion"), dict):
        fields["exclusion"] = exclusion(**fields["exclusion"])
    base = CrestConfig.recommended(steps=1000)
    whole = dataclasses.replace(base, select_from=None, select_until=None, pause_above=1.0)
    size = fields.get("batch_size", whole.batch_size)
    defaults = {"subset_size": max(2 * size, 256)} if "subset_size" not in fields else {}
    return dataclasses.replace(whole, **(defaults | fields))


def changed(config, **fields):
    """Settings with fields replaced, those of the region named as those of the settings."""
    own = {name: fields.pop(name) for name in REGION & fields.keys()}
    if own:
        fields["region"] = dataclasses.replace(config.region, **own)
    return dataclasses.replace(config, **fields)

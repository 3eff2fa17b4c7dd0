"""The configurations that a model's file may hold in its header. This module does not import torch."""

import json
import math
from dataclasses import fields
from typing import Any, TypeAlias

from .matterport_config import MatterportConfig
from .rcnn_config import RCNNConfig

__all__ = ["NetworkConfig", "config_of"]

NetworkConfig: TypeAlias = MatterportConfig | RCNNConfig


def config_of(text: str, default: NetworkConfig) -> NetworkConfig:
    """Return the configuration in the JSON of a model's file.

    Args:
        text: the JSON.
        default: of the same class; it has the values that the JSON lacks.

    Raises:
        ValueError, TypeError: it is not a valid configuration.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise TypeError("the configuration is not an object")
    values: dict[str, Any] = {field.name: getattr(default, field.name) for field in fields(default)}
    for name, value in entries.items():
        like = values.get(name)
        if isinstance(like, tuple):
            values[name] = tuple(_finite(number) for number in value)
        elif isinstance(like, bool) or isinstance(value, bool):
            if type(like) is not type(value):
                raise ValueError(f"the configuration has {name} = {value!r}")
            values[name] = value
        elif isinstance(like, str | int | float) and isinstance(value, str) == isinstance(like, str):
            values[name] = type(like)(value)
        else:
            raise ValueError(f"the configuration has {name} = {value!r}")
    return type(default)(**values)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number

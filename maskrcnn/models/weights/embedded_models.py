"""The models whose weights are part of the package; to add one, add its file and its entry here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import UsageError

__all__ = ["EMBEDDED", "EmbeddedModel"]


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model whose weights are part of the package."""

    name: str
    notice: str
    """What it is limited to: a warning for its user."""

    @property
    def path(self) -> Path:
        """The weights file that is installed with the package."""
        return Path(__file__).parents[1] / f"{self.name}.safetensors"

    def read(self) -> bytes:
        """Return the bytes of the weights file. Raises UsageError if it was not installed."""
        if not self.path.exists():
            raise UsageError(
                f"the embedded model {self.name} is missing: {self.path.name} was not installed with the package; "
                "install it again"
            )
        return self.path.read_bytes()


EMBEDDED: Final[Mapping[str, EmbeddedModel]] = {
    model.name: model
    for model in (
        EmbeddedModel("scenes", "the embedded model `scenes` knows only generated aerial scenes"),
        EmbeddedModel(
            "nuclei", "the embedded model `nuclei` knows only nuclei of cells in microscope images"
        ),
    )
}
"""By name."""

"""Weights that torchvision publishes: in torch's cache, or downloaded into it, without importing torch here."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

__all__ = ["PublishedWeights", "read_published", "torch_hub"]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A file that torchvision publishes."""

    file: str
    """In torch's cache; the last part of the stem is the start of its sha256."""
    member: str
    """Of an enumeration in `torchvision.models`, such as `ResNet50_Weights.IMAGENET1K_V1`."""

    @property
    def sha256_start(self) -> str:
        """The first digits of its sha256, hexadecimal."""
        return Path(self.file).stem.rpartition("-")[2]


def read_published(weights: PublishedWeights, model: str, alternatives: str = "") -> tuple[Path, bytes, str]:
    """Return a published file: its path in torch's cache, its bytes, and its sha256, hexadecimal.

    Args:
        weights: are downloaded if they are not in the cache.
        model: what `--model` was given, for messages.
        alternatives: what else a user without a network can do.

    Raises:
        UsageError: they are damaged, or not in the cache and cannot be downloaded.
    """
    path = torch_hub() / "checkpoints" / weights.file
    if not path.exists():
        _download(weights, path, model, alternatives)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(weights.sha256_start):
        raise UsageError(f"{path} is damaged: its sha256 begins with {digest[:8]}; delete it and try again")
    return path, data, digest


def torch_hub() -> Path:
    """Return the directory of torch's downloads by torch's rules, without importing it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 `~` stands for home
    return Path(home).expanduser() / "hub"


def _download(weights: PublishedWeights, path: Path, model: str, alternatives: str) -> None:
    """Let torchvision download its weights in another process."""
    fetch = "get_state_dict(progress=False, check_hash=True)"
    code = f"from torchvision import models; models.{weights.member}.{fetch}"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode == 0 and path.exists():
        return
    cause = (done.stderr.strip() or "no reason given").splitlines()[-1]
    raise UsageError(
        f"the weights of --model {model} are not at {path} and could not be downloaded ({cause}). Without a "
        f"network: put {weights.file} there (TORCH_HOME moves the place){alternatives}"
    )

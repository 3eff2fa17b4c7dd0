"""The house: which module may import which, and what must not be paid for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "errors types config schema windows stores web s3 objects storage sniff decode geotiff radiometry "
    "raster rle runs unrle outlines planted mosaic matterport_config weightfile unpickle weights masks "
    "crops detectron matterport model backbones fuse pooling forward matterport_forward segmenter stats "
    "sources plan items tiles sandbox frozen manifest survey parts breaker visualize prefetch worker "
    "strips seams coco export geo vector evaluate charts globe maps gallery closeups report ledger "
    "overlay assemble reduce retry run truth pairing matching averages scoring partscore evaluation "
    "lookup display show worst scoresheet laws windowlaws evidence verify alike diff diffpage plain "
    "plain_matterport parity parity_matterport layouts h5file convert scenery scenes baseline "
    "scenes_model annotations dataset recipe curves losses augment batches warmstart train measure "
    "samples peers trials"
).split()
MODULES = sorted(path for path in (ROOT / "maskrcnn").glob("*.py") if path.stem != "__init__")
NETWORK = {"masks", "crops", "detectron", "model", "backbones", "fuse", "pooling", "forward", "segmenter"}
NETWORK |= {"matterport", "matterport_forward", "plain", "plain_matterport", "parity", "parity_matterport"}
NETWORK |= {"layouts", "convert"}
TRAINING = {"backbones", "losses", "augment", "batches", "warmstart", "train"}
TYPE_CHECKING_ONLY = "TYPE_CHECKING"


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Return (name, level) of each import; the sibling's name for relative ones."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(name or "", node.level) for name in names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_those_before_it(path: Path) -> None:
    assert path.stem in ORDER, f"{path.stem} has no place in the order of the modules"
    later = [
        name for name, level in imports_of(path) if level and ORDER.index(name) >= ORDER.index(path.stem)
    ]
    assert later == []
    assert [name for name, level in imports_of(path) if not level and name.startswith("maskrcnn")] == []


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "maskrcnn" / "ARCHITECTURE.md").read_text()
    assert [path.stem for path in MODULES if f"`{path.stem}`" not in text] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_third_parties_stay_at_their_rim(path: Path) -> None:
    rims = {
        "ray": set(),
        "click": set(),
        "fsspec": {"stores", "s3", "storage"},
        "s3fs": {"s3"},
        "PIL": {
            "plain",
            "parity",
            "sniff",
            "decode",
            "visualize",
            "gallery",
            "scenery",
            "scenes",
            "export",
            "samples",
            "display",
            "worst",
        },
        "torch": NETWORK | TRAINING | {"scenes_model", "peers", "trials"},
        "torchvision": NETWORK | TRAINING | {"scenes_model", "peers", "trials"},
        "matplotlib": set(),
        "rasterio": {"geotiff"},
        "h5py": {"h5file"},
    }
    strangers = [
        name
        for name, level in imports_of(path)
        if not level and path.stem not in rims.get(name.partition(".")[0], {path.stem})
    ]
    assert strangers == []


def test_the_library_does_not_assert() -> None:
    """Under `python -O` an assert is gone."""
    asserting = [
        p.name for p in MODULES if any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(p.read_text())))
    ]
    assert asserting == []


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_library_is_cheap() -> None:
    assert loaded_by("import maskrcnn").isdisjoint({"torch", "ray", "pyarrow", "PIL", "fsspec"})


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert loaded_by("import maskrcnn_jobs.cli").isdisjoint({"torch", "ray", "pyarrow", "matplotlib"})


@pytest.mark.parametrize("module", ["segment", "sweep", "actor", "cluster", "demo", "bench", "job_trials"])
def test_the_driver_never_imports_torch(module: str) -> None:
    assert "torch" not in loaded_by(f"import maskrcnn_jobs.{module}")


def test_only_the_modules_of_the_network_import_torch() -> None:
    network = NETWORK | TRAINING | {"scenes_model", "peers", "trials"}
    others = "\n".join(f"import maskrcnn.{path.stem}" for path in MODULES if path.stem not in network)
    assert "torch" not in loaded_by(others)


def test_what_the_package_promises_is_there() -> None:
    import maskrcnn

    missing = [name for name in maskrcnn.__all__ if getattr(maskrcnn, name, None) is None]
    assert missing == []
    assert len(set(maskrcnn.__all__)) == len(maskrcnn.__all__)
    assert set(dir(maskrcnn)) == set(maskrcnn.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = maskrcnn.no_such_name

"""The rooms: which libraries each may use, and what must not be loaded. What they import of each other is checked by
import-linter (`make lint`)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "maskrcnn").rglob("*.py"))
VALUES = {"__init__", "config", "errors", "schema", "stats", "types"}
TORCH = {"models", "training", "masks.encode", "masks.encode_resized"}
WITHOUT_TORCH = {
    "models",
    "models.architectures.matterport_config",
    "models.architectures.network_config",
    "models.architectures.network_shapes",
    "models.architectures.rcnn_config",
    "models.checks",
    "models.checks.batch_costs",
    "models.checks.check_process",
    "models.checks.differences",
    "models.checks.model_checks",
    "models.checks.report",
    "models.checks.sample_images",
    "models.coco_categories",
    "models.conversion",
    "models.conversion.detectron2_config",
    "models.conversion.h5_reader",
    "models.conversion.pickle_reader",
    "models.factory",
    "models.networks",
    "models.own.own_arguments",
    "models.own.own_code",
    "models.own.own_description",
    "models.own.own_process",
    "models.own.own_segmenter",
    "models.registry",
    "models.weights.checkpoint_files",
    "models.weights.published_weights",
    "models.weights.restricted_pickle",
    "training",
    "training.color_baseline",
    "training.config",
    "training.dataset",
    "training.joining",
    "training.schedule",
}
"""Modules of these that a process without torch imports."""
RIMS = {
    "ray": set(),
    "click": set(),
    "fsspec": {"io"},
    "s3fs": {"io.stores.s3_client"},
    "PIL": {
        "imaging",
        "visualization",
        "synthetic",
        "results.export",
        "models.conversion",
        "training.color_baseline",
    },
    "torch": TORCH,
    "torchvision": TORCH,
    "matplotlib": set(),
    "rasterio": {"imaging.geotiff"},
    "simplejpeg": {"imaging.formats.jpeg_pixels"},
    "imagecodecs": {"imaging.formats.jpeg_xl"},
    "shapely": {"formats"},
    "pyproj": {"formats", "visualization.maps"},
    "h5py": {"models.conversion.h5_reader"},
    "yaml": {"models.conversion.detectron2_config"},
    "jinja2": {"visualization"},
}
"""Which rooms or modules may import a library."""


def name_of(path: Path) -> str:
    """Return a module's dotted name below `maskrcnn`; a room's own name for its `__init__`."""
    return ".".join(path.relative_to(ROOT / "maskrcnn").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """Return what a module imports absolutely, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return found


def allowed(module: str, where: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in where)


def test_only_values_lie_outside_the_rooms() -> None:
    assert {path.stem for path in (ROOT / "maskrcnn").glob("*.py")} == VALUES


def test_a_room_says_what_it_holds_and_imports_nothing() -> None:
    """A decoder's process loads `imaging` alone, and a driver no torch: a package that imports would load its rooms."""
    rooms = [path for path in MODULES if path.stem == "__init__" and path.parent.name != "maskrcnn"]
    assert len(rooms) == 23
    for path in rooms:
        assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr], path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_parties_stay_at_their_rim(path: Path) -> None:
    module = name_of(path)
    libraries = {name.partition(".")[0] for name in imports_of(path)}
    assert "maskrcnn" not in libraries, "imports within the package are relative"
    assert [library for library in libraries & RIMS.keys() if not allowed(module, RIMS[library])] == []


def test_the_library_does_not_assert() -> None:
    """Under `python -O` an assert is gone."""
    asserting = [
        name_of(path)
        for path in MODULES
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    ]
    assert asserting == []


def test_no_module_and_no_function_is_long() -> None:
    long = []
    for path in [*MODULES, *(ROOT / "jobs").rglob("*.py")]:
        text = path.read_text()
        if text.count("\n") > 450:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 70:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.slow
def test_importing_the_library_is_cheap() -> None:
    assert loaded_by("import maskrcnn").isdisjoint({"torch", "ray", "pyarrow", "PIL", "fsspec"})


@pytest.mark.slow
def test_the_command_line_starts_without_heavy_imports() -> None:
    assert loaded_by("import maskrcnn_jobs.cli").isdisjoint({"torch", "ray", "pyarrow", "matplotlib"})


@pytest.mark.slow
def test_the_driver_never_imports_torch() -> None:
    modules = sorted((ROOT / "jobs").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / "jobs").with_suffix("").parts) for path in modules]
    skipped = ("__init__", "__main__", "driver.training")
    imports = [f"import maskrcnn_jobs.{name}" for name in names if not name.endswith(skipped)]
    assert len(imports) > 15
    assert "torch" not in loaded_by("\n".join(imports))


@pytest.mark.slow
def test_only_the_modules_of_the_network_import_torch() -> None:
    others = [name for name in map(name_of, MODULES) if not allowed(name, TORCH) or name in WITHOUT_TORCH]
    imports = "\n".join(f"import maskrcnn.{name}" for name in others if name != "__init__")
    assert "torch" not in loaded_by(imports)


@pytest.mark.slow
def test_decoding_in_a_child_process_stays_light() -> None:
    assert loaded_by("import maskrcnn.imaging.decode_pool").isdisjoint({"torch", "ray", "pandas", "jinja2"})


def test_what_the_package_promises_is_there() -> None:
    import maskrcnn

    missing = [name for name in maskrcnn.__all__ if getattr(maskrcnn, name, None) is None]
    assert missing == []
    assert len(set(maskrcnn.__all__)) == len(maskrcnn.__all__)
    assert set(dir(maskrcnn)) == set(maskrcnn.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = maskrcnn.no_such_name


def test_the_version_is_that_of_the_distribution() -> None:
    import importlib.metadata

    import maskrcnn

    assert maskrcnn.__version__ == importlib.metadata.version("maskrcnn-ray")


def test_no_generator_holds_threads() -> None:
    """One that is abandoned is closed by the garbage collector, anywhere: where a thread starts, that is a deadlock."""
    held = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.With)
        and any("ThreadPoolExecutor" in ast.unparse(item.context_expr) for item in node.items)
        and any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node))
    ]
    assert held == []

"""What is published: all of the package and nothing else, and it works where there is no checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest

from maskrcnn.synthetic.scenes import write_scenes

# One of them starts Ray; all share what is built.
pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_AS = {"maskrcnn": "maskrcnn", "jobs": "maskrcnn_jobs"}
"""The package's folders, and their names once they are installed."""


def uv(*arguments: str) -> None:
    """Run uv, from what it has stored already: what is tested needs no network."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs uv, which `make install` brings")
    done = subprocess.run([program, *arguments, "--offline"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(source: Path, output: Path, *which: str) -> Path:
    """Build with the setuptools of this environment; return the wheel or source distribution."""
    options = ("--no-build-isolation", "--python", sys.executable, "--out-dir", str(output))
    uv("build", "--quiet", *which, *options, str(source))
    [built] = [path for path in output.iterdir() if path.suffix in (".whl", ".gz")]
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where all is built and installed; removed at once, since an environment has 60,000 files."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """A copy of the checkout, in which building leaves its own folders."""
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "out")
    return Path(shutil.copytree(ROOT, folder / "source", ignore=unwanted))


@pytest.fixture(scope="module")
def sdist(source: Path, folder: Path) -> Path:
    return build(source, folder / "sdist", "--sdist")


@pytest.fixture(scope="module")
def wheel(source: Path, folder: Path) -> Path:
    return build(source, folder / "wheel", "--wheel")


def files_of_the_package() -> dict[str, bytes]:
    """Return each file of the package's folders, by its name once it is installed."""
    found = {}
    for folder, name in INSTALLED_AS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(Path(name, path.relative_to(ROOT / folder)))] = path.read_bytes()
    return found


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    held = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    expected = files_of_the_package()
    assert sorted(held) == sorted(expected)
    assert held == expected


def test_what_is_not_python_is_in_the_wheel_too(wheel: Path) -> None:
    other = {Path(name).name for name in contents(wheel) if not name.endswith(".py")}
    templates = {f"{name}.html.j2" for name in ("report", "evaluation", "training", "diff")}
    assert other >= {"py.typed", "scenes.safetensors", "LICENSE", "page.css.j2", *templates}


def test_nothing_of_benchmarks_or_tests_is_published(wheel: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    for name in [*names, *contents(wheel)]:
        assert not re.search(r"(^|/)(tests?|benchmarks?|conftest)[/._]|bench", name), name
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        *INSTALLED_AS,
        "maskrcnn_ray.egg-info",
    }


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, sdist: Path, folder: Path) -> None:
    again = build(sdist, folder / "again", "--wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_metadata_are_those_of_the_project(wheel: Path) -> None:
    [metadata] = [data for name, data in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    fields = BytesParser().parsebytes(metadata)
    assert (fields["Name"], fields["Version"]) == (PROJECT["name"], PROJECT["version"])
    required = [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(line.replace(" ", "") for line in required) == sorted(PROJECT["dependencies"])
    assert set(fields.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


# --- installed ---


@pytest.fixture(scope="module")
def installed(wheel: Path, folder: Path) -> Path:
    """The programs of an environment that has the wheel and what it asks for, and nothing of the checkout."""
    environment = folder / "environment"
    uv("venv", "--quiet", "--python", sys.executable, str(environment))
    programs = environment / "bin"
    lock = ("--constraint", str(ROOT / "requirements.lock"))
    uv("pip", "install", "--quiet", "--python", str(programs / "python"), *lock, str(wheel))
    return programs


def run(program: Path, *arguments: str, cwd: Path) -> str:
    """Run a program of the environment from a folder of its own, and return what it prints."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_", "COV"))
    }
    environment = kept | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(program), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_wheel_segments_images(installed: Path, tmp_path: Path) -> None:
    assert "segment" in run(installed / "maskrcnn", "--help", cwd=tmp_path)
    write_scenes(tmp_path / "images", 2, seed=60_000_000, size=256)
    command = ["segment", "images", "out", "--model", "scenes", "--actors", "1"]
    assert run(installed / "maskrcnn", *command, cwd=tmp_path).startswith("2 images: 2 ok")
    code = """
import json, sys
import maskrcnn, maskrcnn_jobs
run = maskrcnn.open_run("out")
facts = [run.images().num_rows, run.instances().num_rows, maskrcnn.__file__, maskrcnn_jobs.__file__, sys.path]
print(json.dumps(facts))
"""
    images, instances, *modules, paths = json.loads(run(installed / "python", "-I", "-c", code, cwd=tmp_path))
    assert images == 2
    assert instances > 0
    environment = str(installed.parent)
    assert [module for module in modules if not module.startswith(environment)] == []
    assert not [path for path in paths if Path(path).resolve().is_relative_to(ROOT)]
    assert "<img" in (tmp_path / "out" / "report.html").read_text()

"""The code of a user's own network, `package.module:factory`: where it is, what it holds, and its digest.

Nothing here imports it except `import_factory`, which processes call that run the network. The code is the whole
top-level package, or the one file of a top-level module, so that its digest covers all that a worker needs; a module
beside it is not found, in any process. Installed packages are named by their version, and are not sent to other nodes.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import keyword
import os
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final

from ...errors import UsageError, plural
from ...synthetic.planted_models import parse_planted

__all__ = [
    "OwnCode",
    "OwnNetwork",
    "code_to_send",
    "files_of",
    "find_code",
    "import_factory",
    "own_digest",
    "parse_own",
    "place_of",
    "raised",
    "unpack",
]

MAX_BYTES: Final = 32 * 2**20
MAX_FILES: Final = 5_000
_PROGRAM: Final = ("maskrcnn", "maskrcnn_jobs", "__main__")
_INSTALLED: Final = ("site-packages", "dist-packages")
_LIBRARY: Final = Path(__file__).parents[2]
"""The folder of `maskrcnn`."""


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """A network of the user's, by the function that builds its segmenter."""

    module: str
    """Its dotted name, as in `import`."""
    factory: str

    @property
    def name(self) -> str:
        """The name for `--model`."""
        return f"{self.module}:{self.factory}"

    @property
    def package(self) -> str:
        """The top-level package or module."""
        return self.module.partition(".")[0]


def parse_own(name: str) -> OwnNetwork | None:
    """Return the network that has this name by its form, `package.module:factory`; None for any other text.

    >>> parse_own("nets.pets:build")
    OwnNetwork(module='nets.pets', factory='build')
    >>> [parse_own(name) for name in ("planted:0.1", "s3://bucket/a.pth", "nets:", "a b:c", "nets", "class:x")]
    [None, None, None, None, None, None]
    """
    module, colon, factory = name.partition(":")
    words = (*module.split("."), factory)
    if not colon or any(not word.isidentifier() or keyword.iskeyword(word) for word in words):
        return None
    return OwnNetwork(module, factory)


@dataclass(frozen=True, slots=True)
class OwnCode:
    """The top-level package or module of a network."""

    package: str
    folder: str | None
    """The folder that holds it; None: it is installed."""
    files: tuple[tuple[str, bytes], ...]
    """Path relative to `folder`, with slashes, and content of each file, by path; empty if it is installed."""
    version: str | None
    """Of an installed package: name and version of its distribution; else None."""

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of paths and contents, or of name and version of what is installed."""
        digest = hashlib.sha256((self.version or "").encode())
        for path, content in self.files:
            digest.update(f"{len(path)} {path} {len(content)} ".encode(errors="surrogateescape"))
            digest.update(content)
        return digest.hexdigest()

    def pack(self) -> bytes:
        """Return the files as a zip file, for other nodes; equal files give equal bytes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in self.files:
                archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


def code_to_send(model: str) -> bytes | None:
    """Return what other nodes need of a model's code, packed; None if it is installed, or no network of the user's own.

    Raises:
        UsageError: as `find_code`.
    """
    own = parse_own(model)
    code = None if own is None or parse_planted(model) is not None else find_code(own)
    return None if code is None or code.folder is None else code.pack()


def unpack(packed: bytes, folder: Path) -> None:
    """Write what `OwnCode.pack` returned into a folder."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)


# --- finding it ---------------------------------------------------------------------------------------------


def find_code(own: OwnNetwork, folder: str | os.PathLike[str] | None = None) -> OwnCode:
    """Return the code of a network, without importing it.

    Args:
        own: the network.
        folder: where its package is looked for first; None: the working directory.

    Raises:
        UsageError: there is no such package, or two of its name, or it is too large to be sent.
    """
    package, place = own.package, Path(folder) if folder is not None else Path.cwd()
    if package in _PROGRAM:
        raise UsageError(
            f"--model {own.name}: {package} is the name of this program's own module: rename yours"
        )
    importlib.invalidate_caches()
    here = _location(_spec_in([str(place)], package))
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != place.resolve()]
    elsewhere = _location(_spec_in(others, package))
    if package in sys.stdlib_module_names:
        raise UsageError(
            f"--model {own.name}: {package} is the name of a module of Python's own: rename yours"
        )
    if here is not None and elsewhere is not None and _is_installed(elsewhere):
        raise UsageError(
            f"--model {own.name}: {place} has a module {package}, and so has an installed package: rename yours"
        )
    found = here or elsewhere or _location(_spec_of(package))
    if found is None:
        raise UsageError(
            f"--model {own.name}: there is no module {package} in {place}, nor is one installed: run the command in "
            f"the folder that holds {package}, or install it"
        )
    if _is_installed(found) and (version := _version(package)):
        return OwnCode(package, None, (), version)
    return OwnCode(package, str(found.parent), _files(own, found), None)


def _spec_in(folders: Sequence[str], package: str) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(package, folders)
    except (ImportError, OSError, ValueError):  # an entry of `sys.path` that cannot be read
        return None


def _spec_of(package: str) -> ModuleSpec | None:
    """Return the spec of a package that is found by other means than its path, as one installed for editing is."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def _location(spec: ModuleSpec | None) -> Path | None:
    """Return the file of a module, or the folder of a package; a folder without Python files is no package."""
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return None if spec.origin is None else Path(spec.origin)
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    if spec.origin is None:  # a namespace: any folder is one
        folders = [folder for folder in folders if next(folder.rglob("*.py"), None) is not None]
    return folders[0] if folders else None


def _is_installed(location: Path) -> bool:
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    inside = any(location.is_relative_to(root) for root in roots)
    return inside or any(part in _INSTALLED for part in location.parts)


def _version(package: str) -> str:
    """Return name and version of the distribution that a package is from; "" for a file that was copied there."""
    names = importlib.metadata.packages_distributions().get(package, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _files(own: OwnNetwork, location: Path) -> tuple[tuple[str, bytes], ...]:
    paths = [location] if location.is_file() else sorted(_walk(location), key=lambda path: path.as_posix())
    if len(paths) > MAX_FILES:
        raise UsageError(
            f"--model {own.name}: the package {location} has more than {plural(MAX_FILES, 'file')}: keep data out of it"
        )
    files, total = [], 0
    for path in paths:
        try:
            content = path.read_bytes() if total + path.stat().st_size <= MAX_BYTES else None
        except OSError as error:
            raise UsageError(
                f"--model {own.name}: {path} cannot be read: {error.strerror or error}"
            ) from error
        if content is None:
            raise UsageError(
                f"--model {own.name}: with {path}, the package {location} has more than {MAX_BYTES // 2**20} MiB, and "
                "all of it is sent to the workers: keep weights and data out of it, and name them by --model-arg"
            )
        total += len(content)
        files.append((path.relative_to(location.parent).as_posix(), content))
    return tuple(files)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a package; not hidden ones, nor compiled ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and not name.endswith((".pyc", ".pyo")) and path.is_file():
                yield path


# --- its digest ----------------------------------------------------------------------------------------------


def own_digest(
    own: OwnNetwork, code: OwnCode, arguments: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> str:
    """Return the hexadecimal SHA-256 of code, arguments and the files that arguments name.

    Args:
        own: the network.
        code: as `find_code` returned it.
        arguments: of its factory.
        files: as `files_of` returned them; None: they are read.

    Raises:
        UsageError: such a file cannot be read.
    """
    files = files_of(arguments) if files is None else files
    whole = {"factory": own.name, "code": code.sha256, "arguments": dict(arguments), "files": dict(files)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def files_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each local file that an argument names by an absolute path.

    Raises:
        UsageError: it cannot be read.
    """
    files = {}
    for name, value in arguments.items():
        if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):  # noqa: PTH113, PTH117
            try:
                with Path(value).open("rb") as file:
                    files[value] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                why = error.strerror or error
                raise UsageError(f"--model-arg {name}: {value} cannot be read: {why}") from error
    return files


# --- importing it -------------------------------------------------------------------------------------------


def import_factory(own: OwnNetwork, code: OwnCode) -> Callable[..., Any]:
    """Import a network's module and return its factory; code that is not installed is imported anew.

    Raises:
        UsageError: the module cannot be imported, or has no such function.
    """
    try:
        with _found_first(code):
            module = importlib.import_module(own.module)
    except ModuleNotFoundError as error:
        if error.name is not None and own.module.startswith(error.name):
            hint = ": name a module as `import` does, without .py" if own.module.endswith(".py") else ""
            raise UsageError(f"--model {own.name}: there is no module {error.name}{hint}") from error
        raise UsageError(
            f"--model {own.name}: {own.module} imports {error.name}, which is not found: install it, or put it into "
            f"one package with {own.module}, since only a whole package is sent to the workers"
        ) from error
    except (Exception, SystemExit) as error:  # what the user's module does may raise anything
        raise UsageError(f"--model {own.name}: importing {own.module} raised {raised(error)}") from error
    factory = getattr(module, own.factory, None)
    if factory is None:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        listed = f": it has {', '.join(known[:20])}" if known else ""
        raise UsageError(f"--model {own.name}: {own.module} has no function {own.factory}{listed}")
    if not callable(factory):
        raise UsageError(
            f"--model {own.name}: {own.factory} is no function, but of the type {type(factory).__name__}"
        )
    return factory  # type: ignore[no-any-return]


def raised(error: BaseException) -> str:
    """Return an exception of the user's code in one line, with the line of code that raised it."""
    if isinstance(error, SyntaxError) and error.filename:
        code = " ".join((error.text or "").split())[:100]
        at = "" if error.lineno is None else f", line {error.lineno}"
        shown = f"{type(error).__name__}: {error.msg} ({error.filename}{at}{f': {code}' if code else ''})"
        return " ".join(shown.split())[:700]
    text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())[:500]
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    at = place_of(frames)
    if not at and frames and not frames[-1][0].startswith("<"):  # as of `<frozen importlib>`
        at = f"{Path(frames[-1][0]).name}, line {frames[-1][1]}"
    return f"{text} ({at})" if at else text


def place_of(frames: Sequence[tuple[str, int]]) -> str:
    """Return the last of some frames, file and line, that is of the user's code, as `nets.py, line 3`; "" if none is.

    Code of Python, of installed packages and of this program only runs what the user's code called.
    """
    own = [
        (file, line)
        for file, line in frames
        if not (file.startswith("<") or _is_installed(Path(file)) or Path(file).is_relative_to(_LIBRARY))
    ]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""


@contextlib.contextmanager
def _found_first(code: OwnCode) -> Iterator[None]:
    """Let a package be found in its folder, and nothing else there: not a `torch` of the user's."""
    if code.folder is None:
        yield
        return
    finder = _Finder(code.package, code.folder)
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{code.package}.")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds one top-level package in one folder."""

    def __init__(self, package: str, folder: str) -> None:
        self._package, self._folder = package, folder

    def find_spec(self, name: str, path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return the package's spec; None for any other module."""
        if name != self._package or path is not None:
            return None
        return PathFinder.find_spec(name, [self._folder])

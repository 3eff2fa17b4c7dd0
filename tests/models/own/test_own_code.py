"""The code of a network of the user's own: recognised by its form, found without importing it, and its digest."""

import keyword
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_networks import write_package

from maskrcnn.errors import UsageError
from maskrcnn.models.own.own_code import (
    OwnNetwork,
    code_to_send,
    find_code,
    import_factory,
    own_digest,
    parse_own,
    unpack,
)
from maskrcnn.models.registry import resolve

WORDS = st.text(st.characters(categories=["L", "Nd"], include_characters="_"), min_size=1).filter(
    lambda text: text.isidentifier() and not keyword.iskeyword(text)
)


@given(st.lists(WORDS, min_size=1, max_size=3), WORDS)
def test_a_name_of_this_form_is_read_and_written_back(module, factory):
    name = f"{'.'.join(module)}:{factory}"
    assert parse_own(name).name == name
    assert parse_own(name).package == module[0]


@given(st.text(st.sampled_from("ab:./ -1é"), max_size=8))
def test_any_other_text_is_no_own_network(text):
    module, colon, factory = text.partition(":")
    words = [*module.split("."), factory]
    assert (parse_own(text) is None) == (not colon or not all(word.isidentifier() for word in words))


def test_names_of_other_models_keep_their_meaning():
    assert resolve("planted:0.1").sleep_s == 0.1
    for name in ("planted:abc", "planted-mosaic:x", "imagenet:maskrcnn_resnet50_fpn", "random:x", "coco:"):
        with pytest.raises(UsageError):
            resolve(name)
    assert resolve("coco.v2:build") == OwnNetwork("coco.v2", "build")


@pytest.fixture
def nets(tmp_path, monkeypatch):
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    return OwnNetwork("nets.pets", "build")


def test_the_digest_covers_each_file_of_the_package(nets, tmp_path):
    seen = [find_code(nets).sha256]
    (tmp_path / "nets" / "__pycache__").mkdir()
    (tmp_path / "nets" / "__pycache__" / "pets.cpython-311.pyc").write_bytes(b"1")
    (tmp_path / "nets" / ".hidden").write_text("1")
    (tmp_path / "other.py").write_text("1")
    assert find_code(nets).sha256 == seen[0]
    for name, text in (
        ("names.txt", "coin\n"),
        ("deep/new.py", ""),
        ("pets.py", "def build(options): ...\n"),
    ):
        path = tmp_path / "nets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        seen.append(find_code(nets).sha256)
    (tmp_path / "nets" / "deep" / "new.py").rename(tmp_path / "nets" / "new.py")
    seen.append(find_code(nets).sha256)
    assert len(set(seen)) == len(seen)


def test_code_that_was_sent_is_the_same(nets, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    packed = code_to_send(nets.name)
    unpack(packed, there)
    assert find_code(nets, there) == type(here := find_code(nets))(here.package, str(there), here.files, None)
    assert find_code(nets, there).sha256 == here.sha256
    assert code_to_send(nets.name) == packed
    assert callable(import_factory(nets, find_code(nets, there)))
    assert sys.modules["nets.pets"].__file__.startswith(str(there))


def test_a_file_that_an_argument_names_is_part_of_the_digest(nets, tmp_path):
    weights, code = tmp_path / "w.pth", find_code(nets)
    digests = []
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        digests.append(own_digest(nets, code, {"weights": str(weights)}))
    assert digests[0] != digests[1] != own_digest(nets, code, {"weights": "w.pth"})


@pytest.mark.slow
def test_what_is_installed_is_named_and_not_sent():
    code = find_code(OwnNetwork("hypothesis.strategies", "build"))
    assert code.version.startswith("hypothesis 6.")
    assert code.files == ()
    assert code_to_send("hypothesis:build") is None
    assert code_to_send("planted") is None


def test_a_module_is_imported_anew_and_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = OwnNetwork("changing", "build")
    for number in (1, 2):
        (tmp_path / "changing.py").write_text(f"def build():\n    return {number}{'0' * number}\n")
        assert import_factory(own, find_code(own))() == int(f"{number}{'0' * number}")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "changing.py").write_text("import beside\n")
    with pytest.raises(UsageError, match=r"imports beside, which is not found: .* put it into one package"):
        import_factory(own, find_code(own))


REFUSED = {
    "missing:build": "there is no module missing in .*: run the command in the folder that holds missing",
    "nets.missing:build": r"there is no module nets\.missing$",
    "nets.py:build": r"there is no module nets\.py: name a module as `import` does, without \.py",
    "nets.pets:missing": r"nets\.pets has no function missing: it has .*build",
    "nets.pets:depth": r"nets\.pets has no function depth",
    "nets.value:build": "build is no function, but of the type int",
    "nets.raises:build": r"importing nets\.raises raised ZeroDivisionError: .* \(raises\.py, line 2\)",
    "nets.ends:build": r"importing nets\.ends raised SystemExit: 3",
    "nets.broken:build": r"importing nets\.broken raised SyntaxError",
    "json:loads": "json is the name of a module of Python's own",
    "maskrcnn.config:digest_of": "name of this program's own module: rename yours",
    "empty:build": "there is no module empty",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_one_line(name, nets, tmp_path):
    (tmp_path / "nets" / "value.py").write_text("build = 3\n")
    (tmp_path / "nets" / "raises.py").write_text("\n1 / 0\n")
    (tmp_path / "nets" / "ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "nets" / "broken.py").write_text("def build(:\n")
    (tmp_path / "empty").mkdir()
    own = parse_own(name)
    with pytest.raises(UsageError, match=REFUSED[name]) as caught:
        import_factory(own, find_code(own))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torch", "click"])
def test_a_module_of_an_installed_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text("def build(options): ...\n")
    with pytest.raises(
        UsageError, match=f"has a module {name}, and so has an installed package: rename yours"
    ):
        find_code(OwnNetwork(name, "build"))


def test_a_package_with_data_in_it_is_refused(nets, tmp_path):
    with (tmp_path / "nets" / "weights.pth").open("wb") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(
        UsageError, match=r"with .*weights\.pth, .* more than 32 MiB, .* name them by --model-arg"
    ):
        find_code(nets)


SYNTAX = {
    "not closed": ("def build(options):\n    x = (\n", r"'\(' was never closed \(/.*/nets\.py, line 2: x = \(\)"),
    "two words": ("build a network\n", r"SyntaxError: invalid syntax \(/.*/nets\.py, line 1: build a network\)"),
    "an indent": ("x = 1\n  y = 2\n", r"IndentationError: unexpected indent \(/.*/nets\.py, line 2: y = 2\)"),
    "null bytes": ("x = 1\0\n", r"importing nets raised SyntaxError: source code string cannot contain null bytes$"),
    "in a text": ("exec('a b')", r"importing nets raised SyntaxError: .*line 1: a b\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", SYNTAX)
def test_a_syntax_error_is_shown_with_file_line_and_text(case, tmp_path):
    code, message = SYNTAX[case]
    (tmp_path / "nets.py").write_text(code)
    own = parse_own("nets:build")
    with pytest.raises(UsageError, match=message) as caught:
        import_factory(own, find_code(own, tmp_path))
    assert "\n" not in str(caught.value)
    assert "importlib" not in str(caught.value)

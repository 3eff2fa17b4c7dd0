"""Every script of `tests/benchmarks` and `tests/chaos` explains itself, and measures nothing when it is asked to."""

import runpy
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
GUARD = 'if __name__ == "__main__":'
SCRIPTS = [
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "chaos")
    for path in sorted((TESTS / folder).glob("*.py"))
    if not path.stem.startswith("test_")
    and (path.stem == "__main__" or GUARD in path.read_text(encoding="utf-8"))
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_prints_its_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(script, run_name="__main__")
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out

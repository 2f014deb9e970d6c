"""The command line `af-pipeline`, and the files of jobs/ that run the same."""

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from af_pipeline.commands import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_has_a_job(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        resolve_name(COMMANDS[name])(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert f'"{name}"' in (ROOT / f"jobs/{name}.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["idnex"], 2), (["--help"], 0), (["evaluate", "--x"], 2)]
)
def test_a_wrong_command_line_is_told(arguments: list[str], code: int) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from af_pipeline.commands import main; sys.exit(main())",
    ]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert "usage:" in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr

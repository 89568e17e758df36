import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from rich.console import Console

from embedding_store import EmbeddingStore
from recsys.folders import store_folder
from recsys.study.next_steps import show_next_steps, shown
from recsys.study.report import build_report, write_report
from tests.recsys.study.example import example_results


@pytest.fixture
def printed(tmp_path: Path) -> str:
    """What is shown of a run in a folder whose name a shell must not take apart."""
    out = tmp_path / "it's a run"
    (out / "upstream/ctr/tensorboard").mkdir(parents=True)
    write_report(build_report(example_results(), samples=5), out)
    series = EmbeddingStore(store_folder(out)).create("user_ctr", dim=4)
    with series.write(as_of=1000, space="ctr-1") as writer:
        writer.append(torch.tensor([7, 9]), torch.arange(8.0).reshape(2, 4))
    stream = io.StringIO()
    show_next_steps(out, Console(file=stream, width=60, soft_wrap=True))
    return stream.getvalue()


def commands(printed: str) -> list[list[str]]:
    indented = re.findall(r"^   (\S.*)$", printed, re.MULTILINE)
    found = [shlex.split(line) for line in indented if not line.startswith((">>>", "tensor", "["))]
    return [
        command for command in found if Path(command[0]).name in ("recsys", "tensorboard", "embedding-store", "python")
    ]


def test_the_printed_commands_work(printed: str) -> None:
    found = {Path(command[0]).name: command for command in commands(printed)}
    assert set(found) == {"recsys", "tensorboard", "embedding-store", "python"}
    for command in commands(printed):
        if "mine.toml" in command:
            continue
        name, options = Path(command[0]).name, command[1:]
        if name == "tensorboard":  # it would serve until stopped
            assert Path(options[options.index("--logdir") + 1]).is_dir()
            assert Path(command[0]).is_file()
            continue
        if name == "python":
            assert Path(unquote(urlsplit(options[-1]).path)).is_file()
            options = ["-c", "import webbrowser"]
        done = subprocess.run([command[0], *options], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr


def test_the_printed_lines_print_what_is_shown(printed: str) -> None:
    lines = re.findall(r"^   >>> (.*)$", printed, re.MULTILINE)
    assert len(lines) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=600, check=True
    )
    assert "[4., 5., 6., 7.]" in done.stdout
    for line in done.stdout.splitlines():
        assert line in printed


def test_a_command_that_is_not_on_the_path_is_named_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(folder))
    assert shown("recsys", "run", "a b") == "recsys run 'a b'"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(folder.parent)
    assert shown("recsys", "run") in (f"{folder / 'recsys'} run", f"{folder.name}/recsys run")

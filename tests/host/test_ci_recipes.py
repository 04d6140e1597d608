"""The ready files of docs/ci: they parse, their scripts are shell, and every option they give exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import _parser
from harness.paths import REPOSITORY

CI = REPOSITORY / "docs" / "ci"
FILES = sorted(CI.iterdir())


def _scripts(path: Path) -> list[str]:
    """The shell of a file, a script each."""
    text = path.read_text()
    if path.suffix != ".yml":
        single = re.findall(r"sh '([^'\n]+)'", text)
        return [*re.findall(r"sh '''(.*?)'''", text, flags=re.DOTALL), *single]
    return list(_strings(yaml.safe_load(text)))


def _strings(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, str(name))
    elif isinstance(node, list):
        if key in ("script", "before_script"):
            yield "\n".join(map(str, node))
        else:
            for value in node:
                yield from _strings(value, key)
    elif key == "run":
        yield str(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_scripts_are_shell(path: Path) -> None:
    scripts = _scripts(path)
    assert scripts
    for script in scripts:
        plain = re.sub(r"\$\{\{.*?\}\}", "X", script)
        checked = subprocess.run(["bash", "-n"], input=plain, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def _commands(path: Path) -> Iterator[list[str]]:
    """Words of each command that starts htpfarm or pytest; variables stay as they are."""
    for script in _scripts(path):
        for line in script.splitlines():
            for part in re.split(r"\|\||&&|;", line):
                words = shlex.split(part.strip(), comments=True) if part.count('"') % 2 == 0 else []
                if words and words[0].endswith(("bin/htpfarm", "bin/pytest")):
                    yield [words[0].rsplit("/", 1)[1], *words[1:]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_exists(path: Path) -> None:
    commands = list(_commands(path))
    assert {words[0] for words in commands} == {"htpfarm", "pytest"}
    ours = (REPOSITORY / "harness" / "pytest_plugin.py").read_text()
    for program, *words in commands:
        if program == "htpfarm":
            _parser().parse_args(words)  # ends the test where it does not parse
            continue
        for word in words:
            if word.startswith("--") and word != "--rootdir":
                assert f'"{word}"' in ours, word


def test_the_docs_name_every_file_and_no_other() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text()
    assert set(re.findall(r"\]\((ci/[^)]+)\)", text)) == {f"ci/{path.name}" for path in FILES}


@pytest.mark.parametrize("name", ["github-nightly.yml", "github-gate.yml"])
def test_a_workflow_has_what_it_must(name: str) -> None:
    data = yaml.safe_load((CI / name).read_text())
    assert data[True]  # `on` is a boolean to YAML 1.1
    assert data["permissions"] == {"contents": "read"}
    assert data["concurrency"]["cancel-in-progress"] is False
    (job,) = data["jobs"].values()
    assert {"self-hosted", "htpfarm-lab"} <= set(job["runs-on"])
    assert all("uses" in step or "run" in step for step in job["steps"])


def test_gitlab_keeps_junit_and_one_job_at_a_time() -> None:
    data = yaml.safe_load((CI / "gitlab-ci.yml").read_text())
    assert data[".rack"]["resource_group"]
    assert data[".rack"]["artifacts"]["reports"]["junit"] == "out/junit.xml"
    for name in ("nightly", "gate"):
        assert data[name]["extends"] == ".rack"
        assert any("--junit out/junit.xml" in line for line in data[name]["script"])

"""The toolchain: found or refused with a remedy, mended where needed, told apart by its fingerprint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from events import HANG_S

from harness.errors import ConfigError
from harness.toolchain import environment, interposer, mends, qnn


def test_no_compiler_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no C compiler") as caught:
        interposer.find_compiler()
    assert "gcc" in caught.value.remedy


def test_a_compiler_that_fails_shows_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such thing as C' >&2\nexit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(ConfigError, match="exit status 4") as caught:
        interposer.build_interposer(Path("/x/libQnnHtp.so"), tmp_path / "out.so")
    assert "no such thing as C" in caught.value.evidence


def test_an_sdk_root_without_the_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path))
    with pytest.raises(ConfigError, match=r"libQnnHtp\.so"):
        qnn.find_qnn()


def test_the_view_is_laid_out_once_and_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "onnxruntime_qnn"
    package.mkdir()
    for name in ("libQnnHtp.so", "libQnnSystem.so", "libonnxruntime_providers_qnn.so"):
        (package / name).write_bytes(b"not really")
    first = qnn.lay_out(package, "2.4.0")
    inode = (first.root / qnn.HOST_LIBRARIES / "libQnnHtp.so").stat().st_ino
    again = qnn.lay_out(package, "2.4.0")
    assert again == first
    libraries = first.root / qnn.HOST_LIBRARIES
    assert (libraries / "libQnnHtp.so").stat().st_ino == inode
    assert not (libraries / "libQnnHtp.so").is_symlink()
    assert (libraries / "libQnnSystem.so").resolve() == package / "libQnnSystem.so"
    assert not (libraries / "libonnxruntime_providers_qnn.so").exists()
    assert first.real_htp == package / "libQnnHtp.so"


def test_the_interposer_reports_a_library_that_does_not_load(tmp_path: Path) -> None:
    bogus = tmp_path / "bogus.so"
    bogus.write_bytes(b"not a library")
    built = tmp_path / "libQnnHtp.so"
    interposer.build_interposer(bogus, built)
    code = (
        "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); p = ctypes.c_void_p(); n = ctypes.c_uint32();"
        "l.QnnInterface_getProviders.restype = ctypes.c_uint64;"
        "print(l.QnnInterface_getProviders(ctypes.byref(p), ctypes.byref(n)), n.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(built)], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout.split() == ["1", "0"]
    assert "does not load" in done.stderr


@pytest.mark.slow
def test_the_libraries_start_through_the_interposer() -> None:
    """A device for SM8650 is made: what fails with 14001 without the mend."""
    toolchain = environment.find_toolchain()
    assert environment.build_id(toolchain).startswith("v2.")
    code = (
        "import torch\n"
        "from executorch.backends.qualcomm.utils.utils import *\n"
        "from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext\n"
        "spec = generate_qnn_executorch_compiler_spec(soc_model=get_soc_to_chipset_map()['SM8650'],"
        " backend_options=generate_htp_compiler_spec(use_fp16=False))\n"
        "with QnnManagerContext({'forward': spec}): print('started')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=toolchain.environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert "started" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


def converter(root: Path, text: str) -> Path:
    folder = root / "examples" / "models" / "qwen"
    folder.mkdir(parents=True)
    (folder / "convert_weights.py").write_text(text)
    return root


def test_the_torchtune_mend_stops_when_upstream_needs_it_no_more(tmp_path: Path) -> None:
    needs = converter(tmp_path / "a", "import torch\nfrom torchtune.models import x\n")
    does_not = converter(tmp_path / "b", "import torch\n# from torchtune import x\n")
    assert mends.stub_paths(needs) == (mends.STUBS,)
    assert mends.stub_paths(does_not) == ()


def test_params_are_written_for_upstream(tmp_path: Path) -> None:
    path = mends.write_params({"dim": 8, "norm_eps": 1e-5}, tmp_path)
    assert json.loads(path.read_text()) == {"dim": 8, "norm_eps": 1e-5}
    assert [p.name for p in tmp_path.iterdir()] == ["params.json"]


def test_the_environment_goes_in_front_and_keeps_what_was_there() -> None:
    toolchain = environment.find_toolchain()
    result = toolchain.environment({"LD_LIBRARY_PATH": "/mine", "PYTHONPATH": "/also", "HOME": "/h"})
    assert result["LD_LIBRARY_PATH"].endswith(":/mine")
    assert result["PYTHONPATH"].endswith(":/also")
    assert result["HOME"] == "/h"
    assert result["QNN_SDK_ROOT"] == str(toolchain.qnn.root)
    twice = toolchain.environment(result)
    assert twice == result


def test_the_fingerprint_changes_with_what_it_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain = environment.find_toolchain()
    before = environment.fingerprint_id(toolchain)
    assert before == environment.fingerprint_id(toolchain)
    monkeypatch.setattr(environment, "source_hash", lambda: "another")
    assert environment.fingerprint_id(toolchain) != before

"""Where a real phone's runner and libraries are from: ExecuTorch's build for Android, and the QNN SDK.

A run has one of each (`--build-folder`, `QNN_SDK_ROOT`); in a run of A against B each side may have its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.farm.deploy import sha256_of
from harness.farm.payload import android_payload
from harness.soc import Soc

BUILD_FOLDER = "HTPFARM_BUILD_FOLDER"
"""Names ExecuTorch's build for Android (`--build-folder`)."""
BUILD_NAME = "build-android"
"""What ExecuTorch's `backends/qualcomm/scripts/build.sh` calls its build folder, in the checkout."""
_BUILT = ("examples/qualcomm/oss_scripts/llama/qnn_llama_runner", "backends/qualcomm/libqnn_executorch_backend.so")
_HTP = "lib/aarch64-android/libQnnHtp.so"


@dataclass(frozen=True)
class PhoneFiles:
    """What is pushed to a real phone beside the model.

    Attributes:
        build: ExecuTorch's `build-android`.
        sdk: the QNN SDK.
    """

    build: Path
    sdk: Path

    def check(self, socs: list[Soc], where: str = "") -> None:
        """Refuses a build folder or an SDK in which files are missing, before anything runs.

        Args:
            socs: of the phones.
            where: which side of a run of A against B; empty of a run of one.

        Raises:
            ConfigError: files are missing; names all of them.
        """
        for soc in socs:
            try:
                # Any file will do for the model: what counts here is what lies beside it.
                android_payload(Path(__file__), Path(__file__), soc, build_folder=self.build, qnn_sdk_root=self.sdk)
            except ConfigError as error:
                if not where:
                    raise
                said = f"{where}: {self.build}, {self.sdk}"
                raise ConfigError(error.what, where=said, remedy=error.remedy, evidence=error.evidence) from error

    def fingerprint(self) -> dict[str, str]:
        """Hashes of what runs on the phone, by stable names; of files that are there."""
        files = {
            "android_runner_sha256": self.build / _BUILT[0],
            "android_backend_sha256": self.build / _BUILT[1],
            "android_qnn_htp_sha256": self.sdk / _HTP,
        }
        return {name: sha256_of(path) for name, path in files.items() if path.is_file()}


def phone_files(build: Path | None = None, sdk: Path | None = None, where: str = "") -> PhoneFiles:
    """The files of a run, or of one side of a run of A against B.

    Args:
        build, sdk: the side's own; None: those of the run.
        where: which side; empty of a run of one.

    Raises:
        ConfigError: no build folder, or no SDK, is named.
    """
    return PhoneFiles(build or _build_folder(where), sdk or _sdk_root(where))


def own_build_folder(place: Path, executorch: Path) -> Path | None:
    """The `build-android` of one side: in the folder named, or in the checkout that its ExecuTorch is; None: none.

    Args:
        place: the environment or the folder of `.pte` files.
        executorch: folder of the ExecuTorch package: of a checkout it lies in it, or is it.
    """
    package = executorch.resolve()
    checkouts = [folder for folder in (package, *package.parents[:2]) if (folder / "backends" / "qualcomm").is_dir()]
    found = (folder / BUILD_NAME for folder in (place, *checkouts))
    return next((folder for folder in found if folder.is_dir()), None)


def _build_folder(where: str) -> Path:
    if named := os.environ.get(BUILD_FOLDER):
        return Path(named)
    if where:
        raise ConfigError(
            "real phones need ExecuTorch's runner for Android, and this side has none",
            where=where,
            remedy=f"build it: backends/qualcomm/scripts/build.sh leaves {BUILD_NAME} in the side's checkout, where it "
            "is found; or give --ab-build-folders BASE CANDIDATE, or one --build-folder for both",
        )
    raise ConfigError(
        "real phones need ExecuTorch's runner for Android, and no build folder is named",
        where="--build-folder",
        remedy=f"build it with backends/qualcomm/scripts/build.sh and give --build-folder {BUILD_NAME}",
    )


def _sdk_root(where: str) -> Path:
    if named := os.environ.get("QNN_SDK_ROOT"):
        return Path(named)
    either = ", or give --ab-sdks BASE CANDIDATE" if where else ""
    raise ConfigError(
        "real phones need the QNN SDK's libraries for Android",
        where=f"{where}: QNN_SDK_ROOT" if where else "QNN_SDK_ROOT",
        remedy=f"let it name the SDK: the package onnxruntime-qnn has the host's libraries alone{either}",
    )

"""The phone a runner believes it runs on, and how that phone refuses a `.pte` of another HTP generation.

A virtual phone sets `HTPFARM_PHONE_SOC` to its chipset. The simulator would run any generation's context binary, so the
phone's check is made here, before loading, and fails as a phone fails: QNN's lines, ExecuTorch's lines, SIGABRT. Lines
as seen on devices: a V79 binary on an older chipset in qualcomm/ai-hub-apps#63 ("Request feature arch with value 79
unsupported"), a wrong VTCM size with the rest of the chain in pytorch/executorch#9084; the user's symptom ("the v75
.pte does not load on my SM8550") is pytorch/executorch#4973 and #11100. Some phones run an older generation's binary;
a virtual one refuses it, so that a cell always tests the artifact made for its chipset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ConfigError
from harness.runtime.program import ProgramInfo
from harness.soc import Soc, find_soc

PHONE_SOC = "HTPFARM_PHONE_SOC"
"""Environment variable: chipset of the virtual phone, as SM8550."""

_QNN = "[Qnn ExecuTorch]: "


@dataclass(frozen=True)
class Refusal:
    """Why the phone's HTP refuses a context binary.

    Attributes:
        qnn: lines the QNN backend prints to standard error.
        errors: (source file, line, text) of what ExecuTorch logs after them.
    """

    qnn: tuple[str, ...]
    errors: tuple[tuple[str, int, str], ...]


def phone_soc(environ: Mapping[str, str]) -> Soc | None:
    """The virtual phone's chipset; None off a virtual phone.

    Raises:
        ConfigError: the variable names no chipset.
    """
    name = environ.get(PHONE_SOC, "")
    if not name:
        return None
    try:
        return find_soc(name)
    except ConfigError as error:
        raise ConfigError(error.what, where=PHONE_SOC, remedy=error.remedy) from None


def refusal(info: ProgramInfo, phone: Soc | None) -> Refusal | None:
    """How `phone` refuses the program; None when it would load. Pure."""
    if phone is None or info.delegate is None:
        return None
    if info.delegate.htp_arch != phone.arch:
        reason = f"Request feature arch with value {info.delegate.htp_arch} unsupported"
    elif info.delegate.vtcm_mb > phone.vtcm_mb:
        reason = f"Request feature vtcm size with value {info.delegate.vtcm_mb << 20} unsupported"
    else:
        return None
    return Refusal(
        qnn=(
            f"[INFO] {_QNN}Deserializing processed data using QnnContextCustomProtocol",
            f"[INFO] {_QNN}create QNN Logger with log_level 1",
            f"[INFO] {_QNN}Initialize Qnn backend parameters for Qnn executorch backend type 2",
            f"[INFO] {_QNN}Caching: Caching is in RESTORE MODE.",
            f"[ERROR] {_QNN}QnnDsp <E> {reason}",
            "",
            f"[ERROR] {_QNN}QnnDsp <E> Failed to register context to device and backend",
            "",
            f"[ERROR] {_QNN}QnnDsp <E> Failed to create context from binary with err 0x138d",
            "",
            f"[ERROR] {_QNN}Can't create context from binary. Error 5005.",
        ),
        errors=(
            ("QnnManager.cpp", 270, "Fail to configure Qnn context"),
            ("QnnExecuTorchBackend.cpp", 96, "Fail to initialize Qnn Manager"),
            ("method.cpp", 128, "Init failed for backend QnnBackend: 0x1"),
        ),
    )

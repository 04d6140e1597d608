"""Facts about chipsets and phones: a chipset's HTP generation, a phone's chipset, how a phone is recognised.

Sources: chipsets are ExecuTorch 1.5.1's `backends/qualcomm/serialization/qc_schema.py` (`_soc_info_table`): HTP
architecture and VTCM size. Phone properties are as the makers ship them; a phone is recognised by `ro.soc.model`
alone, since one marketing name hides several chipsets (the Galaxy S24 is a Snapdragon in some countries and an Exynos
in others) and one platform name covers several chipsets (`sun` is SM8750 and CQ8750S).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from harness.errors import ConfigError


@dataclass(frozen=True, order=True)
class Soc:
    """A chipset as the HTP compiler sees it.

    Attributes:
        name: Qualcomm's part number and ExecuTorch's `--soc_model`, as `SM8650`.
        arch: Hexagon architecture, as 75 for V75; names the skel and stub libraries.
        vtcm_mb: size of the HTP's tightly coupled memory, in MB.
    """

    name: str
    arch: int
    vtcm_mb: int


_CHIPSETS: tuple[Soc, ...] = (
    Soc("QCM6490", 68, 2),
    Soc("SA8295", 68, 8),
    Soc("SM8350", 68, 4),
    Soc("SM8450", 69, 8),
    Soc("SM8475", 69, 8),
    Soc("SXR2230P", 69, 8),
    Soc("QCS9100", 73, 8),
    Soc("SA8255", 73, 8),
    Soc("SC8380XP", 73, 8),
    Soc("SM8550", 73, 8),
    Soc("SSG2115P", 73, 2),
    Soc("SSG2125P", 73, 2),
    Soc("SXR1230P", 73, 2),
    Soc("SM8650", 75, 8),
    Soc("SM8750", 79, 8),
    Soc("SXR2330P", 79, 8),
    Soc("SA8797", 81, 16),
    Soc("SAR2230P", 81, 4),
    Soc("SM8845", 81, 8),
    Soc("SM8850", 81, 8),
    Soc("SW6100", 81, 4),
)

SOCS: Mapping[str, Soc] = MappingProxyType({soc.name: soc for soc in sorted(_CHIPSETS, key=lambda soc: soc.name)})


@dataclass(frozen=True)
class PhoneKind:
    """A phone model, as its Android properties describe it. What a virtual phone pretends to be.

    Attributes:
        key: our name, as `galaxy_s23`; what `virtual:` in devices.yaml says.
        label: the name people use, as `Galaxy S23`.
        model: `ro.product.model`.
        device: `ro.product.device`.
        manufacturer: `ro.product.manufacturer`.
        brand: `ro.product.brand`.
        soc: `ro.soc.model`; a key of SOCS, except on phones without an HTP.
        platform: `ro.board.platform`.
        soc_manufacturer: `ro.soc.manufacturer`.
    """

    key: str
    label: str
    model: str
    device: str
    manufacturer: str
    brand: str
    soc: str
    platform: str
    soc_manufacturer: str = "QTI"


def _galaxy(key: str, label: str, model: str, device: str, soc: str, platform: str, maker: str = "QTI") -> PhoneKind:
    return PhoneKind(key, label, model, device, "samsung", "samsung", soc, platform, maker)


_KINDS: tuple[PhoneKind, ...] = (
    _galaxy("galaxy_s21", "Galaxy S21", "SM-G991U", "o1q", "SM8350", "lahaina"),
    _galaxy("galaxy_s22", "Galaxy S22", "SM-S901U", "r0q", "SM8450", "taro"),
    _galaxy("galaxy_s23", "Galaxy S23", "SM-S911U", "dm1q", "SM8550", "kalama"),
    _galaxy("galaxy_s24", "Galaxy S24", "SM-S921U", "e1q", "SM8650", "pineapple"),
    _galaxy("galaxy_s24_exynos", "Galaxy S24 (Exynos)", "SM-S921B", "e1s", "s5e9945", "erd9945", "Samsung"),
    _galaxy("galaxy_s25", "Galaxy S25", "SM-S931U", "pa1q", "SM8750", "sun"),
    PhoneKind("oneplus_12", "OnePlus 12", "CPH2581", "OP595DL1", "OnePlus", "OnePlus", "SM8650", "pineapple"),
)

PHONE_KINDS: Mapping[str, PhoneKind] = MappingProxyType({kind.key: kind for kind in _KINDS})

# Labels by the start of `ro.product.model`; first match wins, so the Exynos suffixes stand before their family.
# Only what a report calls the phone hangs on these; whether it can run does not.
_LABELS: tuple[tuple[str, str], ...] = (
    ("SM-G991", "Galaxy S21"),
    ("SM-S901", "Galaxy S22"),
    ("SM-S906", "Galaxy S22+"),
    ("SM-S908", "Galaxy S22 Ultra"),
    ("SM-S711", "Galaxy S23 FE"),
    ("SM-S911", "Galaxy S23"),
    ("SM-S916", "Galaxy S23+"),
    ("SM-S918", "Galaxy S23 Ultra"),
    ("SM-S921B", "Galaxy S24 (Exynos)"),
    ("SM-S921N", "Galaxy S24 (Exynos)"),
    ("SM-S926B", "Galaxy S24+ (Exynos)"),
    ("SM-S926N", "Galaxy S24+ (Exynos)"),
    ("SM-S921", "Galaxy S24"),
    ("SM-S926", "Galaxy S24+"),
    ("SM-S928", "Galaxy S24 Ultra"),
    ("SM-S931", "Galaxy S25"),
    ("SM-S936", "Galaxy S25+"),
    ("SM-S938", "Galaxy S25 Ultra"),
    ("CPH2573", "OnePlus 12"),
    ("CPH2581", "OnePlus 12"),
    ("CPH2583", "OnePlus 12"),
    ("PJD110", "OnePlus 12"),
    ("CPH2585", "OnePlus 12R"),
    ("CPH2609", "OnePlus 12R"),
    ("CPH2611", "OnePlus 12R"),
)


@dataclass(frozen=True)
class Recognition:
    """What a phone's properties say about it.

    Attributes:
        soc: its chipset, or None when it cannot run HTP cells.
        label: what people call the phone, else its `ro.product.model`, else "unknown phone".
        reason: why it was taken for that chipset, or why it is refused.
    """

    soc: Soc | None
    label: str
    reason: str


def suggestion(word: str, known: Iterable[str]) -> str:
    """A remedy for an unknown word: the closest known ones if any is close, else all of them."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    close = [lower[match] for match in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}" if names else ""


def find_soc(name: str) -> Soc:
    """The chipset of that exact name.

    Raises:
        ConfigError: no such chipset; names close ones.
    """
    if soc := SOCS.get(name):
        return soc
    raise ConfigError(f"unknown SoC {name!r}", remedy=suggestion(name, SOCS))


def _soc_of_part(part: str) -> Soc | None:
    """The chipset whose name starts `part`, as SM8650 for `SM8650-AC`; a further digit makes it another chipset."""
    for name in sorted(SOCS, key=len, reverse=True):
        if re.match(re.escape(name) + r"(?!\d)", part, flags=re.IGNORECASE):
            return SOCS[name]
    return None


def _label(model: str) -> str:
    for prefix, label in _LABELS:
        if model.startswith(prefix):
            return label
    return model or "unknown phone"


def recognise(props: Mapping[str, str]) -> Recognition:
    """Tell a phone's chipset from its Android properties (`getprop`), by `ro.soc.model` alone.

    Args:
        props: property name → value; reads `ro.soc.model`, `ro.product.model`, `ro.board.platform`, `ro.hardware`.
    """
    part = props.get("ro.soc.model", "").strip()
    model = props.get("ro.product.model", "").strip()
    label = _label(model)
    if part.lower().startswith("s5e"):
        return Recognition(None, label, f"ro.soc.model is {part}, a Samsung Exynos: it has no Hexagon HTP")
    if not part:
        platform = props.get("ro.board.platform", "") or props.get("ro.hardware", "") or "unknown"
        hint = "; this model is sold with an Exynos, which has no Hexagon HTP" if "(Exynos)" in label else ""
        return Recognition(
            None,
            label,
            f"ro.soc.model is empty and the platform ({platform}) does not tell one chipset from another{hint}",
        )
    if soc := _soc_of_part(part):
        return Recognition(soc, label, f"ro.soc.model is {part}: {soc.name}, HTP V{soc.arch}")
    return Recognition(None, label, f"ro.soc.model is {part}, which is no chipset we know")

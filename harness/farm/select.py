"""Which phones meet a request, and for each other one why not: never, or not now. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InfraError, UnsupportedError
from harness.farm.health import HealthState
from harness.inventory import Phone


@dataclass(frozen=True)
class Wish:
    """What a phone is asked for; what is empty or None does not matter.

    Attributes:
        soc: name of the chipset.
        arch: HTP architecture, as 75.
        labels, capabilities: all of these.
        phones: names, any of these.
    """

    soc: str = ""
    arch: int | None = None
    labels: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    phones: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts = [self.soc, f"HTP V{self.arch}" if self.arch else ""]
        parts += ["called " + " or ".join(sorted(self.phones))] if self.phones else []
        parts += [f"label {word}" for word in sorted(self.labels)]
        parts += [f"capability {word}" for word in sorted(self.capabilities)]
        return ", ".join(part for part in parts if part) or "any"


ANY_PHONE = Wish()


@dataclass(frozen=True)
class Standing:
    """A phone as it stands now.

    Attributes:
        phone: of devices.yaml, with its SoC as probed.
        unreachable: why it does not answer or was refused; empty if it answers.
        health: its state, and the cause.
        holder: who has it leased; empty if it is free.
        cooling: whether it is too hot now.
    """

    phone: Phone
    unreachable: str = ""
    health: HealthState = HealthState.GOOD
    cause: str = ""
    holder: str = ""
    cooling: bool = False


@dataclass(frozen=True)
class Selection:
    """What became of a wish.

    Attributes:
        free: phones that meet it now, the best first.
        busy: phone → why not now.
        never: phone → why it cannot meet it, however long one waits.
    """

    free: tuple[Phone, ...]
    busy: Mapping[str, str]
    never: Mapping[str, str]


def select(wish: Wish, rack: Sequence[Standing]) -> Selection:
    """Sorts a rack's phones by whether they meet a wish; those of higher priority first, else in the rack's order."""
    free: list[Phone] = []
    busy: dict[str, str] = {}
    never: dict[str, str] = {}
    for one in rack:
        if why := _never(wish, one):
            never[one.phone.name] = why
        elif why := _not_now(one):
            busy[one.phone.name] = why
        else:
            free.append(one.phone)
    return Selection(tuple(sorted(free, key=lambda phone: -phone.priority)), busy, never)


def _never(wish: Wish, one: Standing) -> str:
    phone = one.phone
    reasons = []
    if wish.phones and phone.name not in wish.phones:
        reasons.append(f"it is not {' or '.join(sorted(wish.phones))}")
    if wish.soc and (phone.soc is None or phone.soc.name != wish.soc):
        reasons.append(f"it has {phone.soc.name if phone.soc else 'no HTP, or has not said which'}, not {wish.soc}")
    if wish.arch is not None and (phone.soc is None or phone.soc.arch != wish.arch):
        reasons.append(f"its HTP is {f'V{phone.soc.arch}' if phone.soc else 'none'}, not V{wish.arch}")
    if missing := wish.labels - set(phone.labels):
        reasons.append(f"it lacks the label {', '.join(sorted(missing))}")
    if missing := wish.capabilities - set(phone.capabilities):
        reasons.append(f"it lacks the capability {', '.join(sorted(missing))}")
    return "; ".join(reasons)


def _not_now(one: Standing) -> str:
    if not one.health.usable:
        return f"{one.health}: {one.cause or 'no cause noted'}; `htpfarm devices clear {one.phone.name}`"
    if one.unreachable:
        return one.unreachable
    if one.holder:
        return f"busy: leased to {one.holder}"
    return "busy: cooling down" if one.cooling else ""


def demand(wish: Wish, rack: Sequence[Standing]) -> Selection:
    """As `select`, for a wish that some phone must meet now.

    Raises:
        UnsupportedError: no phone of the rack ever will.
        InfraError: none does now.
    """
    found = select(wish, rack)
    if found.free:
        return found
    lines = [f"{name}: never: {why}" for name, why in found.never.items()]
    lines = [f"{name}: not now: {why}" for name, why in found.busy.items()] + lines
    if found.busy:
        raise InfraError(
            f"no phone is free now for the request: {wish}",
            where="rack",
            remedy="wait, or see to the phones below",
            evidence="\n".join(lines),
        )
    raise UnsupportedError(
        f"no phone of this rack can ever meet the request: {wish}",
        where="rack",
        remedy="add such a phone to devices.yaml, or ask for less",
        evidence="\n".join(lines),
    )


def meeting(wish: Wish, rack: Sequence[Standing]) -> list[Phone]:
    """The phones of a rack that meet a wish now or some time, in the rack's order.

    Raises:
        UnsupportedError, InfraError: as `demand`, which says of each phone why not.
    """
    if wish == ANY_PHONE:
        return [one.phone for one in rack]
    never = demand(wish, rack).never
    return [one.phone for one in rack if one.phone.name not in never]

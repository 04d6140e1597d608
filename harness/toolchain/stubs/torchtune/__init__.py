"""Stands in for torchtune where it is not installed; see harness/toolchain/mends.py."""

__version__ = "0+htpfarm-stub"

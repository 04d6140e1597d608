"""htpfarm: a pytest harness for racks of phones that run language models on Qualcomm's HTP through ExecuTorch."""

__version__ = "0.1.0"

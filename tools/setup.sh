#!/usr/bin/env bash
# Makes the virtual environment of this checkout: setup.sh PYTHON VENV
# uv where there is one, plain pip otherwise. torch goes first and alone: a CPU build is enough and ten times smaller,
# so one that the machine offers (pip's or uv's find-links) is taken before an index is asked.
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."

torch=$(grep -E '^torch==' constraints.txt)
wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}

if command -v uv >/dev/null 2>&1; then
  uv venv --python "$python" --allow-existing "$venv"
  install() { uv pip install --python "$venv/bin/python" ${wheels:+--find-links "$wheels"} "$@"; }
  if [ -n "$wheels" ] && install --no-index --no-deps "$torch" 2>/dev/null; then
    echo "torch: the local build"
  elif ! install --torch-backend cpu "$torch" 2>/dev/null; then
    install "$torch"
  fi
else
  "$python" -m venv "$venv"
  install() { "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@"; }
  install "$torch"
fi
install --constraint constraints.txt --editable '.[dev]'

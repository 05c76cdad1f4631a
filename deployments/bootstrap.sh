#!/bin/sh
# Makes .venv from requirements.lock. Needs Python 3.11 to 3.13 and a package index, nothing else:
# no pip, no venv module, no uv. Quick when nothing changed. Run it from the top of the checkout.
#
# uv does not read pip's configuration, so an index that is set for pip (PIP_INDEX_URL or pip.conf)
# is handed on to it.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.installed
if [ -f "$stamp" ] && [ -x .venv/bin/tradeflows ] \
   && [ ! requirements.lock -nt "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then
  exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      python=$(command -v "$name"); break
    fi
  done
fi
[ -n "$python" ] || { echo "tradeflows needs Python 3.11, 3.12 or 3.13 on the PATH (or PYTHON=/path/to/one)" >&2; exit 1; }

if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
  if [ -n "$index" ]; then UV_DEFAULT_INDEX=$index; export UV_DEFAULT_INDEX; fi
fi
if [ -z "${SSL_CERT_FILE:-}" ] && [ -n "${PIP_CERT:-}" ]; then SSL_CERT_FILE=$PIP_CERT; export SSL_CERT_FILE; fi
# the interpreter is the one found above, never a downloaded one
UV_PYTHON_DOWNLOADS=never; export UV_PYTHON_DOWNLOADS
# a large wheel over a slow line takes longer than uv's 30 s
UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}; export UV_HTTP_TIMEOUT

uv=$(command -v uv || true)
if [ -z "$uv" ] && [ ! -x .uv/bin/uv ]; then
  echo "fetching uv into .uv"
  # a virtual environment where the system has what that needs, else pip into a folder (which works where
  # the system's Python refuses installs), else the wheel itself by the standard library
  { "$python" -m venv .uv && .uv/bin/python -m pip install -q uv; } >/dev/null 2>&1 \
    || { rm -rf .uv; "$python" -m pip install -q --target .uv uv; } >/dev/null 2>&1 \
    || { rm -rf .uv; "$python" deployments/fetch_uv.py .uv; }
fi
[ -n "$uv" ] || uv=$PWD/.uv/bin/uv

echo "installing the locked packages into .venv"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
VIRTUAL_ENV=$PWD/.venv; export VIRTUAL_ENV
# compiled once here, so that no process compiles 1 GB of packages at its start
"$uv" pip sync --quiet --require-hashes --compile-bytecode requirements.lock
"$uv" pip install --quiet --no-deps --editable .
touch "$stamp"

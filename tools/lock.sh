#!/bin/sh
# Writes the lock files anew from pyproject.toml, with hashes, by uv in a throwaway environment.
set -eu
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install --quiet --disable-pip-version-check uv

compile() {
    "$tool/bin/uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
}

for pair in controller:requirements.lock postgres:requirements-postgres.lock dev:requirements-dev.lock; do
    compile pyproject.toml --extra "${pair%%:*}" --no-emit-package medianest-operator --upgrade -o "${pair##*:}"
    echo "wrote ${pair##*:}"
done
sed -n 's/^requires = \["\(hatchling==[^"]*\)"\]$/\1/p' pyproject.toml >"$tool/build.in"
compile "$tool/build.in" --upgrade -o requirements-build.lock
echo "wrote requirements-build.lock"

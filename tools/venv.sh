#!/bin/sh
# Makes the virtual environment of development from the lock file: tools/venv.sh FOLDER LOCKFILE
set -eu
venv=$1 lock=$2

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    # The lock file was made for 3.11, the images' version; a newer one is the second choice.
    for candidate in ${PYTHON3:-} python3.11 /usr/bin/python3.11 python3 python3.12 python3.13; do
        if usable "$candidate"; then echo "$candidate"; return; fi
    done
}

as_root() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "error: $1; install it and try again (on Debian: apt-get install $2)" >&2
        exit 1
    fi
    echo "  installing $2" >&2
    apt-get -qq update
    # shellcheck disable=SC2086 # several packages
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $2 >/dev/null
}

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
[ ! -e "$venv/ready" ] || exit 0

python=$(find_python)
if [ -z "$python" ]; then
    as_root "there is no Python 3.11 or newer" "python3 python3-venv ca-certificates"
    python=$(find_python)
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    as_root "this Python can't make virtual environments" "python3-venv ca-certificates"
    python=$(find_python)
fi
echo "  making the virtual environment of the tests (some 20 s, once)" >&2
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r "$lock"
touch "$venv/ready"

#!/usr/bin/env bash
# Install one stack and sa_mmdet into a virtual environment; `make install` calls it. It may be
# interrupted and run again: what is there is not installed twice.
#
# Usage: tools/install.sh openmmlab|onedl VENV
set -euo pipefail

stack=$1
venv=$2
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
log=$venv/install.log
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --no-build-isolation)

fail() {
    echo "error: $1" >&2
    exit 1
}

# step NAME ADVICE COMMAND...: run a command into the log; on failure show its first error and advice.
step() {
    local name=$1 advice=$2 before
    shift 2
    echo "[$stack] $name"
    echo "=== $name: $*" >>"$log"
    before=$(wc -l <"$log")
    "$@" >>"$log" 2>&1 || fail "$name: $(first_error "$before")
$advice
Log: $log"
}

# first_error N: the first error in the log after line N; its last line if none says so.
first_error() {
    awk -v before="$1" '
        NR > before && !error && !/subprocess-exited/ &&
            tolower($0) ~ /(error|fatal) *:|no space left/ { error = $0 }
        END { print error ? error : $0 }' "$log"
}

# What must be free before torch is downloaded and unpacked, which with CUDA is 3 GB more.
check_disk() {
    local needed=4 free
    ! nvidia-smi -L >/dev/null 2>&1 && [ "${FORCE_CUDA:-0}" != 1 ] || needed=10
    free=$(($(df --output=avail -k "$venv" | tail -n 1) / 1000000))
    [ -e "$venv"/lib/python3*/site-packages/torch ] || [ "$free" -ge "$needed" ] ||
        fail "$needed GB are needed in $venv, $free are free: make room, or clone to a larger disk"
}

# torchvision belongs to one build of torch: that of the package index is made with CUDA, and where
# torch is not it raises at import, which MMEngine does not expect. So it is tried in a folder aside,
# from where the tests, which need its Python alone, take it if it does not load.
install_torchvision() {
    local aside=$venv/torchvision wanted
    wanted=$(sed -n 's/==/-/p' requirements/torchvision.txt)
    [ -d "$aside/$wanted.dist-info" ] ||
        "${pip[@]}" --no-deps --upgrade --target "$aside" -r requirements/torchvision.txt || return
    ! PYTHONPATH="$aside" "$venv/bin/python" -c 'import torchvision' ||
        "${pip[@]}" --no-deps -r requirements/torchvision.txt
}

check_machine() {
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
        fail "Python 3.11 or 3.12 is needed, $python is $("$python" --version 2>&1 || true): give another by PYTHON=..."
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "$python has no headers, which mmcv's operators are built with: install them (Debian and Ubuntu: apt-get install python3-dev)"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler found, which mmcv's operators are built with: install g++ (Debian and Ubuntu: apt-get install g++)"
}

check_machine
mkdir -p "$venv"
check_disk
: >"$log"
network='Is the package index reachable? pip honours PIP_INDEX_URL and its other settings.'
cd "$root"

step 'virtual environment' "Remove $venv and try again." \
    "$python" -m venv "$venv"
step 'build tools' "$network" "${pip[@]}" -r requirements/build.txt
step 'torch' "$network" "${pip[@]}" -r requirements/torch.txt -c requirements/build.txt
step 'packages of both stacks' "$network" "${pip[@]}" --no-deps -r requirements/common.txt \
    -r requirements/imagenet.txt -r requirements/test.txt -r requirements/docs.txt
step 'torchvision' "$network" install_torchvision
grep -v mmcv "requirements/$stack.txt" >"$venv/requirements.txt"
step 'MMEngine and MMDetection' "$network" "${pip[@]}" --no-deps -r "$venv/requirements.txt"
echo "[$stack] mmcv"
"$venv/bin/python" tools/install_mmcv.py "$(grep mmcv "requirements/$stack.txt")" --log "$log"
step 'sa_mmdet, whose operator is compiled (a minute)' \
    "With SA_MMDET_BUILD=0 it is installed without; the formula in PyTorch takes its place." \
    env SA_MMDET_BUILD="${SA_MMDET_BUILD:-1}" "${pip[@]}" --no-deps -e .
step 'check' "Remove $venv and try again; if it happens again, the log says what does not import." \
    "$venv/bin/python" -c 'import sa_mmdet, mmdet.apis'
"$venv/bin/python" -c 'import torchvision' 2>/dev/null || cat <<EOF
[$stack] torchvision is not installed: that of the package index does not load beside this torch, which
is another build. It is needed to train classifiers on ImageNet and for torchvision:// weights, and by
nothing else. For these: $venv/bin/pip install --no-deps $(tail -n 1 requirements/torchvision.txt),
from where your torch came from.
EOF

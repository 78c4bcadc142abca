#!/usr/bin/env bash
# Install one stack and sa_mmdet into a virtual environment; `make install` calls it. If it is
# interrupted, run it again: it skips what is already installed.
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

# step NAME ADVICE COMMAND...: log a command's output; if it fails, show its first error and ADVICE.
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

# first_error N: print the first error in the log after line N, or its last line if there is none.
first_error() {
    awk -v before="$1" '
        NR > before && !error && !/subprocess-exited/ &&
            tolower($0) ~ /(error|fatal) *:|no space left/ { error = $0 }
        END { print error ? error : $0 }' "$log"
}

# Check the disk space to download and unpack torch; the build with CUDA is 3 GB larger.
check_disk() {
    local needed=4 free
    ! nvidia-smi -L >/dev/null 2>&1 && [ "${FORCE_CUDA:-0}" != 1 ] || needed=10
    free=$(($(df --output=avail -k "$venv" | tail -n 1) / 1000000))
    [ -e "$venv"/lib/python3*/site-packages/torch ] || [ "$free" -ge "$needed" ] ||
        fail "$needed GB are needed in $venv, but $free GB are free: make room, or clone to a larger disk"
}

# torchvision must match the build of torch. The package index has one for CUDA, which raises at
# import next to a torch for the CPU, and MMEngine does not expect that. So try it in a separate
# folder first. If it does not load, it stays there for the tests, which only need its Python code.
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
        fail "Python 3.11 or 3.12 is needed, but $python is $("$python" --version 2>&1 || true): set PYTHON=... to another"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "$python has no headers, which mmcv's operators need to compile: install them (Debian and Ubuntu: apt-get install python3-dev)"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler found, which mmcv's operators need: install g++ (Debian and Ubuntu: apt-get install g++)"
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
step 'sa_mmdet (compiling its operator takes a minute)' \
    "Set SA_MMDET_BUILD=0 to install without the operator; the PyTorch reference replaces it." \
    env SA_MMDET_BUILD="${SA_MMDET_BUILD:-1}" "${pip[@]}" --no-deps -e .
step 'check' "Remove $venv and try again. If it fails again, the log says which import fails." \
    "$venv/bin/python" -c 'import sa_mmdet, mmdet.apis'
"$venv/bin/python" -c 'import torchvision' 2>/dev/null || cat <<EOF
[$stack] torchvision is not installed: the one in the package index does not match this build of torch.
Only training on ImageNet and torchvision:// weights need it. If you need it, install it from the index
that your torch came from: $venv/bin/pip install --no-deps $(tail -n 1 requirements/torchvision.txt)
EOF

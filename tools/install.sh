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
mmcv=$(grep mmcv "$root/requirements/$stack.txt")

fail() {
    echo "error: $1" >&2
    exit 1
}

# step NAME ADVICE COMMAND...: run a command into the log; on failure show the log's end and advice.
step() {
    local name=$1 advice=$2
    shift 2
    echo "[$stack] $name"
    echo "=== $name: $*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        echo >&2
        fail "installation failed at the step \"$name\"; whole log: $log
$advice"
    fi
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

check_operators() {
    "$venv/bin/python" - <<'EOF'
import torch
from mmcv.ops import nms
device = 'cuda' if torch.cuda.is_available() else 'cpu'
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 30., 30.]], device=device)
assert len(nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]) == 2
print('mmcv operators work on', device)
EOF
}

# pip may have kept an mmcv wheel that was built for another torch, or without CUDA: then build it anew.
install_stack() {
    "${pip[@]}" --no-deps -r "requirements/$stack.txt"
    check_operators || "${pip[@]}" --no-deps --no-cache-dir --force-reinstall "$mmcv"
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
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler found, which mmcv's operators are built with: install g++ (Debian and Ubuntu: apt-get install g++)"
    if has_gpu && ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        fail "there is an NVIDIA GPU but no nvcc, which mmcv's CUDA operators are built with: install the CUDA toolkit 13.0 (that of the pinned torch), or set CUDA_HOME"
    fi
}

check_machine
mkdir -p "$venv"
: >"$log"
export CFLAGS="${CFLAGS:--g0}"  # debug information would only make the build longer
network='Is the package index reachable? pip honours PIP_INDEX_URL and its other settings.'
cd "$root"

step 'virtual environment' "Remove $venv and try again." \
    "$python" -m venv "$venv"
step 'build tools' "$network" "${pip[@]}" -r requirements/build.txt
step 'torch' "$network" "${pip[@]}" -r requirements/torch.txt -c requirements/build.txt
step 'packages of both stacks' "$network" "${pip[@]}" --no-deps -r requirements/common.txt \
    -r requirements/imagenet.txt -r requirements/test.txt -r requirements/docs.txt
step 'torchvision' "$network" install_torchvision
step "MMEngine, MMDetection and $mmcv, whose operators are compiled (many minutes)" \
    "$network
mmcv needs a C++17 compiler, Python's headers (python3-dev) and about 2 GB of memory for each job: MAX_JOBS=1 builds with the least. On a GPU the CUDA toolkit must be that of torch; mmcv 2.1.0 predates CUDA 13, STACK=onedl does not." \
    install_stack
step 'sa_mmdet, whose operator is compiled (a minute)' \
    "With SA_MMDET_BUILD=0 it is installed without; the formula in PyTorch takes its place." \
    env SA_MMDET_BUILD="${SA_MMDET_BUILD:-1}" "${pip[@]}" --no-deps -e .
step 'check' "Remove $venv and try again; if it happens again, the log says what does not import." \
    "$venv/bin/python" -c 'import sa_mmdet, mmdet.apis'
step 'operators' "Remove $venv and the cached wheel (pip cache remove 'onedl_mmcv*' 'mmcv*'), then try again." \
    check_operators
"$venv/bin/python" -c 'import torchvision' 2>/dev/null || cat <<EOF
[$stack] torchvision is not installed: that of the package index does not load beside this torch, which
is another build. It is needed to train classifiers on ImageNet and for torchvision:// weights, and by
nothing else. For these: $venv/bin/pip install --no-deps $(tail -n 1 requirements/torchvision.txt),
from where your torch came from.
EOF

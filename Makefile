# make quickstart | test | test-fast | test-slow | zoo | docs | linkcheck | lint | install | wheels
#     STACK=openmmlab|onedl   PYTHON=python3
# zoo tries attention in every family of MMDetection's configs: docs/compatibility.md.
# Tests run in WORKERS processes (2), with one thread each.
#
# With an NVIDIA GPU the default is onedl, the maintained fork. mmcv 2.1.0 of the openmmlab stack
# compiles with CUDA 13, which the pinned torch uses, but has not been run with it.
STACK ?= $(if $(shell nvidia-smi -L 2>/dev/null),onedl,openmmlab)
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

ifeq ($(filter $(STACK),openmmlab onedl),)
$(error STACK must be openmmlab or onedl, got "$(STACK)")
endif

VENV := .venv/$(STACK)
RUN := $(VENV)/bin/python
ASIDE := $(CURDIR)/tests/without_operators:$(CURDIR)/$(VENV)/torchvision

.PHONY: quickstart test test-fast test-slow zoo dropin docs linkcheck lint install wheels clean

quickstart: install
	$(RUN) tools/quickstart.py $(ARGS)

test: install
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

# Only the library, without Triton's interpreter, whole detectors and compilers: two minutes.
test-fast: install
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup --hypothesis-profile=fast \
		-k "not triton and not detectors and not distributed and not compil" \
		$(addprefix tests/,ops models checkpoint hooks) $(ARGS)

test-slow: install
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup --slow $(ARGS)

# MMPretrain's backbones need torchvision. If it was built for another torch, it is in a separate
# folder. A worker that exceeds the timeout is killed and replaced. So there is no --dist loadgroup
# here: a replaced worker would start its group again with the same test.
zoo: install
	PYTHONPATH=$$($(RUN) -c 'import torchvision' 2>/dev/null || echo $(ASIDE)) $(RUN) -m pytest \
		-n $(WORKERS) --timeout 600 --timeout-method thread tests/zoo/detectors.py $(ARGS)

dropin: zoo  # the former name, kept for one release

docs: install
	$(RUN) -m sphinx -q -W --keep-going -c docs . docs/_build/html
	@echo "$(CURDIR)/docs/_build/html/docs/index.html"

# Check the external links; this needs the network.
linkcheck: install
	$(RUN) -m sphinx -q -b linkcheck -c docs . docs/_build/linkcheck

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) tests/prose.py

# Download what install takes from the package index, for a machine without access to it.
wheels: install
	$(RUN) -m pip wheel --no-deps --no-build-isolation --wheel-dir wheels -r requirements/build.txt \
		-r requirements/common.txt -r requirements/imagenet.txt -r requirements/test.txt \
		-r requirements/docs.txt -r requirements/torchvision.txt -r $(VENV)/requirements.txt
	$(RUN) -m pip download --dest wheels -r requirements/torch.txt -c requirements/build.txt
	$(RUN) tools/install_mmcv.py $$(grep mmcv requirements/$(STACK).txt) --wheel-dir wheels

install: $(VENV)/.installed

$(VENV)/.installed: requirements/build.txt requirements/torch.txt requirements/common.txt requirements/test.txt \
		requirements/docs.txt requirements/imagenet.txt requirements/torchvision.txt \
		requirements/$(STACK).txt tools/install.sh tools/install_mmcv.py pyproject.toml setup.py \
		$(wildcard sa_mmdet/ops/csrc/*)
	PYTHON="$(PYTHON)" tools/install.sh $(STACK) $(VENV)
	@touch $@

clean:
	rm -rf .venv docs/_build

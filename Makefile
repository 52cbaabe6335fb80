# make demo: set everything up and run the whole audit on synthetic images.    make test: set everything up and run the tests.
# Both take TORCH_INDEX=URL: the index of PyTorch's builds without libraries for GPUs, which pytorch.org names under "Get started" (Pip, CPU).
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# of what pip says, the large downloads; its errors are shown whatever they are
LARGE := awk '/Downloading .*[0-9][0-9][.0-9]* MB/ || /Downloading .* GB/ {print "  " $$2, $$3, $$4} /^Installing/ {print "  putting the files in place: about a minute"} {fflush()}'
CORE := attacks losses mixtures detectors metrics

.PHONY: demo test test-fast coverage test-integrations test-lowest lint docs bench study survive fuzz install clean

demo: .venv/installed-demo
	$(BIN)/feathide demo --out runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# the core in less than a minute
test-fast: .venv/installed
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile $(CORE:%=tests/%)

# which lines of the core no test of the core reaches
coverage: .venv/installed
	$(BIN)/python -m pytest $(CORE:%=tests/%) tests/checks $(CORE:%=--cov=feathide.%) --cov-report=term-missing:skip-covered --cov-fail-under=95

# torchattacks comes alone: of requests it takes 2.25 only, which other packages of the tests refuse; it works with newer ones.
test-integrations: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[test,art,foolbox,ood,timm,onnx,ray]'
	$(BIN)/python -m pip install --quiet --no-deps 'torchattacks>=3.5'
	$(BIN)/python -m pytest tests/integrations

# The fast tests with the oldest versions that pyproject.toml promises (Python 3.11). Needs uv, which resolves to the lowest.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e '.[test]'
	.venv-lowest/bin/python -m pytest tests/checks tests/models/test_models.py tests/detectors/test_detectors.py tests/mixtures/test_mixtures.py

lint: .venv/installed
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

bench: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step.py --quick --rounds 3
	$(BIN)/python benchmarks/mixture.py --quick
	$(BIN)/python benchmarks/detectors.py

study: .venv/installed  # the paper's experiments: make study DATA=images SCALE=small
	$(BIN)/feathide study paper --scale $(or $(SCALE),small) --data $(or $(DATA),data) --out runs/study-$(or $(SCALE),small) --workers $(or $(WORKERS),2)

survive: .venv/installed
	OMP_NUM_THREADS=1 FEATHIDE_KILLS=20 $(BIN)/python -m pytest tests/execution/test_endurance.py

fuzz: .venv/installed  # led by the code that is reached: make fuzz ENGINE=atheris
	$(if $(ENGINE),$(BIN)/python -m pip install --quiet $(ENGINE))
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/fuzz/$(if $(ENGINE),guided,run).py --minutes $(or $(MINUTES),10)

install: .venv/installed

# what an audit needs
.venv/installed-demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "feathide needs Python 3.11 or newer, got %d.%d; say make PYTHON=python3.x" % sys.version_info[:2])'
	@echo "1 of 3: a fresh Python environment in .venv"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "2 of 3: PyTorch$(if $(TORCH_INDEX),, (with libraries for GPUs; make TORCH_INDEX=URL leaves them out, see README))"
	@set -o pipefail; $(PIP) install torch torchvision $(if $(TORCH_INDEX),-i $(TORCH_INDEX)) | $(LARGE)
	@echo "3 of 3: feathide, with MONAI, Lightning, scikit-learn and others"
	@set -o pipefail; $(PIP) install -e . | $(LARGE)
	@touch $@

# and what the tests need
.venv/installed: .venv/installed-demo pyproject.toml
	@echo "Tools of the tests: pytest, mypy, ruff, mkdocs and others"
	@set -o pipefail; $(PIP) install -e '.[test]' | $(LARGE)
	@touch $@

clean:
	rm -rf .venv .venv-lowest build dist site

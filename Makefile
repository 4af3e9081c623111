# make install | quickstart | test | test-cluster | test-gpu | lint | validate-deploy | audit | bench: each makes .venv first, with the pinned versions of
# constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyPI's own torch brings gigabytes of CUDA; TORCH_INDEX names another index for torch alone (see README).
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt


.PHONY: install quickstart test test-cluster test-gpu lint validate-deploy audit bench bench-quality clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[train,serve]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

install: $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/seqroute quickstart --out runs/quickstart

# In two processes: see tests/conftest.py. One test: `.venv/bin/python -m pytest tests/core/test_hbr.py`.
test: $(VENV)/.installed-dev
	.ci/install-redis
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# Every stage on a head and two nodes, one of which is killed; minutes. `make test` runs the quickest of them.
test-cluster: $(VENV)/.installed-dev
	.ci/install-redis
	$(BIN)/python -m pytest tests/cluster -m "" --durations 0

# Training on an NVIDIA GPU; minutes. Needs a torch with CUDA, and fails where there is none.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/gpu -m "" --durations 0

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --severity-level medium seqroute_ray jobs

# cluster.yaml, deploy/ and serve_configs/, offline. ARGS=--run-docker-commands also runs the Dockerfile's pip commands.
validate-deploy: $(VENV)/.installed-dev
	$(BIN)/python -m deploy.validate $(ARGS)

# Known vulnerabilities of everything that is pinned; a package that cannot be looked up is a failure too.
audit: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench-quality: $(VENV)/.installed-dev
	rm -rf runs/quality runs/ablations runs/add-model
	$(BIN)/python benchmarks/quality.py

bench: $(VENV)/.installed-dev
	$(PIP) -e ".[bench]"
	test -e runs/quickstart/report.json || $(MAKE) quickstart
	rm -rf runs/quality runs/ablations runs/add-model
	for script in benchmarks/[a-z]*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

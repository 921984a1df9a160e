# Each target sets up what it needs, in .venv, and is quick when nothing has changed.
# The machine brings python3 (>= 3.10, with venv and its C headers), g++ and make; the rest comes through pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := -m pip --disable-pip-version-check --quiet
PYTEST := -m pytest
WORKERS := -n auto

native := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml
kernels := $(shell find tests/gpu/kernels -type f)
programs := tests/comm/mutants.cpp tests/comm/protocol.cpp
python := $(shell find python -name '*.py')
cpp    := $(filter %.h %.cpp %.cu %.cuh,$(native) $(kernels) $(programs))
linted := bench python setup.py tests tools

.PHONY: help demo test bench lint format sanitize test-package test-newest-torch test-oldest-transformers cuda wheel clean

help:
	@echo "make demo       a real model and small ones, on torch and on weft"
	@echo "make test       the test suite"
	@echo "make bench      the benchmark (one family of it: .venv/bin/python -m bench norm)"
	@echo "make lint       formatting, types, floors, compiler warnings; make format repairs the formatting"
	@echo "make sanitize   the CPU kernels' tests and the simulator's under the address and undefined-behaviour sanitizers"
	@echo "make wheel      dist/*.whl and dist/*.tar.gz; make clean removes what was built"
	@echo "CONTRIBUTING.md names the rest."

# ------------------------------------------------------------------------------------------------------ environment
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements/build.txt requirements/torch.txt | $(BIN)/python
	@echo "Installing torch and the build tools into $(VENV)"
	@$(BIN)/python $(PIP) install --upgrade pip
	@$(BIN)/python $(PIP) install -r requirements/build.txt
	@touch $@

# Editable: changes to Python files count at once, changes to C++ files with the next make.
$(VENV)/.weft: $(VENV)/.requirements $(native)
	@echo "Building weft"
	@$(BIN)/python $(PIP) install --no-build-isolation -c requirements/torch.txt -e '.[bench,demo,lint,test]'
	@touch $@

# --------------------------------------------------------------------------------------------------------- for users
demo: $(VENV)/.weft
	$(BIN)/python -m weft.cli demo --plot build/weft-demo.png

test: $(VENV)/.weft build/simulator/.built
	$(BIN)/python $(PYTEST) $(WORKERS)

bench: $(VENV)/.weft
	$(BIN)/python -m bench

wheel: $(VENV)/.weft
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist python/*.egg-info python/weft/*.so $(VENV)/.weft

# What runs CUDA kernels on machines without a GPU.
build/simulator/.built: $(VENV)/.requirements $(native) $(kernels)
	@echo "Building the simulator"
	@$(call configure,simulator) -DWEFT_SIMULATOR=on
	@$(BIN)/cmake --build build/simulator --target weft_gpu_tests weft_simulated_ops
	@touch $@

# ---------------------------------------------------------------------------------------------------- for developers
lint: $(VENV)/.weft
	$(BIN)/ruff check $(linted)
	$(BIN)/ruff format --check $(linted)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(cpp)
	$(BIN)/python tools/check_floors.py
	$(call configure,werror) -DWEFT_WERROR=on -DWEFT_SIMULATOR=on
	$(BIN)/cmake --build build/werror

format: $(VENV)/.weft
	$(BIN)/ruff check --fix $(linted)
	$(BIN)/ruff format $(linted)
	$(BIN)/clang-format -i $(cpp)

# A build tree of its own, build/$(1).
configure = $(BIN)/cmake -S . -B build/$(1) -G Ninja --log-level=WARNING -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
            -DPython_EXECUTABLE=$(abspath $(BIN))/python

# Without dynamo: its inductor would run the compiler, too, under the sanitizers.
sanitized = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:log_path=build/sanitize/report UBSAN_OPTIONS=print_stacktrace=1 TORCHDYNAMO_DISABLE=1
# Collectives run in processes of their own, several a test.
collectives := in_their_order and 3 or every_level or used_again or at_once or product_and_its or one_after_the_other or killed_rank and 100 or two_rounds
sanitize: $(VENV)/.weft
	WEFT_SANITIZE='address;undefined' WEFT_BUILD_DIR=build/sanitize/tree \
	$(BIN)/python setup.py --quiet build --build-lib build/sanitize/site
	rm -f build/sanitize/report.*
	$(sanitized) PYTHONPATH=build/sanitize/site $(BIN)/python $(PYTEST) $(WORKERS) --sample 23 \
	tests/norm tests/attention tests/int8 -k 'not compile and not opcheck' || { cat build/sanitize/report.*; exit 1; }
	$(sanitized) PYTHONPATH=build/sanitize/site $(BIN)/python $(PYTEST) tests/comm -k '$(collectives)' \
	|| { cat build/sanitize/report.*; exit 1; }
	$(call configure,sanitize/simulator) -DWEFT_SIMULATOR=on '-DWEFT_SANITIZE=address;undefined'
	$(BIN)/cmake --build build/sanitize/simulator --target weft_gpu_tests
	$(sanitized) WEFT_SIMULATOR_DIR=build/sanitize/simulator $(BIN)/python $(PYTEST) $(WORKERS) tests/gpu \
	|| { cat build/sanitize/report.*; exit 1; }

# Builds the distributions as a user would, and installs them into environments of their own.
test-package: $(VENV)/.weft
	$(BIN)/python $(PYTEST) -m '' tests/package

# The CUDA library, on every machine with nvcc: no GPU and no CUDA build of torch is needed. Then what can be said of it
# without a GPU: the oldest torch that it loads into, registers, spills, instructions.
cuda: $(VENV)/.weft build/simulator/.built
	$(call configure,cuda) -DWEFT_CUDA=on
	$(BIN)/cmake --build build/cuda --target weft_cuda weft_gpu_tests_cuda
	$(BIN)/python $(PIP) install -r requirements/cuda.txt
	rm -rf build/cuda/audit && mkdir build/cuda/audit && cp build/cuda/libweft_cuda.so build/cuda/audit
	$(BIN)/torch-abi-audit --check torch build/cuda/audit
	$(BIN)/python tools/check_cuda.py build/cuda/libweft_cuda.so
	$(BIN)/python $(PYTEST) -q tests/gpu/test_machine_code.py

# On a machine with a GPU. PYTHON has a CUDA build of torch, and what requirements/build.txt and the extras test and bench
# name; nothing is installed. INSTALLED=1 takes weft as PYTHON has it, from a wheel, instead of building it here; the
# kernels of tests/gpu, which no wheel holds, are built where there is nvcc.
gpu_weft := $(if $(INSTALLED),,PYTHONPATH="python$${PYTHONPATH:+:$$PYTHONPATH}")
.PHONY: gpu-build gpu-test gpu-bench
gpu-build:
ifndef INSTALLED
	WEFT_CUDA=on WEFT_BUILD_DIR=build/cuda CMAKE_ARGS='-DWEFT_SIMULATOR=on -DWEFT_GPU_TESTS=on' $(PYTHON) setup.py --quiet build_ext --inplace
else
	@command -v "$${CUDACXX:-nvcc}" || { echo "No nvcc here: tests/gpu has what build/cuda holds"; exit 0; }; \
	$(PYTHON) -m cmake -S . -B build/cuda -G Ninja --log-level=WARNING -DWEFT_CUDA=on -DWEFT_SIMULATOR=on \
	  -DCMAKE_MAKE_PROGRAM="$$($(PYTHON) -c 'import ninja; print(ninja.BIN_DIR)')/ninja" \
	  -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')" && \
	$(PYTHON) -m cmake --build build/cuda --target weft_gpu_tests weft_gpu_tests_cuda weft_simulated_ops
endif

# The whole suite on the GPU, some of it under compute-sanitizer too; if it passes, and weft was built here, the ledger
# says so.
gpu-test: gpu-build
	$(gpu_weft) WEFT_SIMULATOR_DIR=build/cuda $(PYTHON) -m tests.hardware $(if $(INSTALLED),run,record)

# Into bench/results/<gpu>/.
gpu-bench: $(if $(INSTALLED),,gpu-build)
	$(gpu_weft) $(PYTHON) -m bench --device cuda --save

# The libraries that were built against the pinned torch, in the newest one (a CUDA build: some 6 GB).
test-newest-torch: $(VENV)/.weft
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) install --upgrade torch numpy expecttest hypothesis pytest pytest-xdist
	PYTHONPATH=python .venv-newest/bin/python $(PYTEST) $(WORKERS) --sample 7 tests/norm
	PYTHONPATH=python .venv-newest/bin/python $(PYTEST) tests/package

# weft's attention in the oldest transformers that it knows.
test-oldest-transformers: $(VENV)/.weft
	$(PYTHON) -m venv .venv-transformers
	.venv-transformers/bin/python $(PIP) install -r requirements/torch.txt 'transformers==4.57.*' numpy expecttest hypothesis pytest
	PYTHONPATH=python .venv-transformers/bin/python $(PYTEST) tests/integration/test_transformers.py tests/integration/test_optimize_attention.py

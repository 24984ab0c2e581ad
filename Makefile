# make demo    trains a small GPT through a two-rank pipeline
# make test    runs every test
#
# Everything happens in .venv; nothing is asked of the machine but Python, a C++20 compiler and make.
#   TORCH=torch==2.11.0   another torch (pip's words and options)      PYTHON=python3.12   another Python
#   PIPERT_WERROR=ON      warnings are errors, for who works on pipert  PYTEST_ARGS, DEMO_ARGS
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
export PIPERT_WERROR ?= OFF
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export PATH := $(abspath $(VENV))/bin:$(PATH)

# The stamp of another torch request has another name.
torch_stamp := $(VENV)/.torch-$(shell echo '$(TORCH)' | tr -c 'A-Za-z0-9.\n' -)
cpp_files = $(shell find csrc tests/cpp tests/cpp_torch tests/fakes -name '*.h' -o -name '*.cpp' -o -name '*.cu')
cpp_folders = $(shell find csrc -type d)

.PHONY: setup demo test test-cpp test-cpp-torch test-python models-doc lint lint-cpp lint-python lint-types format sanitize sanitize-torch clean distclean
setup: $(VENV)/.pipert

demo: setup
	python examples/train_gpt.py $(DEMO_ARGS)

test: test-cpp test-cpp-torch test-python

test-cpp: $(torch_stamp)
	$(call test_floors,address,undefined)
	$(test_threads)

# In the folder where setup has built the floors for the module.
test-cpp-torch: setup
	cmake --build build/cmake-$$(python -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))') --target test_torch

test-python: setup
	python -m pytest $(PYTEST_ARGS)

# Every model of docs/models.md in every way, under every schedule of the page, which it writes. Minutes.
models-doc: setup
	OMP_NUM_THREADS=1 python tests/model_matrix.py

sanitize: $(torch_stamp)
	$(call test_floors,address,undefined)
	$(call test_floors,thread)

# To the thread sanitizer a wait that is missing on the fake of CUDA is a race. Many minutes to compile.
sanitize-torch: setup
	cmake -G Ninja -S . -B build/torch-thread -DPIPERT_SANITIZE=thread -DPIPERT_CUDA=OFF \
	  -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python
	cmake --build build/torch-thread --target test_executor_lanes
	build/torch-thread/tests/cpp_torch/test_executor_lanes

lint: lint-cpp lint-python lint-types

lint-cpp: $(VENV)/.lint
	clang-format --dry-run -Werror $(cpp_files)

lint-python: $(VENV)/.lint
	ruff check .
	ruff format --check .

lint-types: setup $(VENV)/.lint
	mypy

format: $(VENV)/.lint
	clang-format -i $(cpp_files)
	ruff check --fix .
	ruff format .

clean:
	rm -rf build dist *.egg-info pipert/_C.*.so pipert/_C.*.json $(VENV)/.pipert
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

distclean: clean
	rm -rf $(VENV)

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(torch_stamp): $(VENV)/pyvenv.cfg
	python -m pip install --upgrade 'setuptools>=77' cmake ninja numpy
	python -m pip install $(TORCH)
	rm -f $(VENV)/.torch-*
	touch $@

$(VENV)/.pipert: $(torch_stamp) pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/*) $(cpp_folders) $(filter csrc/%,$(cpp_files))
	python -m pip install --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.pipert
	python -m pip install --no-build-isolation --editable '.[lint]'
	touch $@

# $(call test_floors,sanitizers): the torch-free floors and their tests.
comma := ,
define test_floors
	cmake -G Ninja -S . -B build/floors-$(1) -DPIPERT_TORCH=OFF \
	  -DPIPERT_SANITIZE=$(1)$(if $(2),$(comma)$(2)) -DPIPERT_WERROR=$(PIPERT_WERROR)
	cmake --build build/floors-$(1)
	ctest --test-dir build/floors-$(1) --output-on-failure --no-tests=error
endef

# The tests that start threads, and what they need, under the thread sanitizer: `make sanitize` has all tests there.
define test_threads
	cmake -G Ninja -S . -B build/floors-thread -DPIPERT_TORCH=OFF \
	  -DPIPERT_SANITIZE=thread -DPIPERT_WERROR=$(PIPERT_WERROR)
	cmake --build build/floors-thread --target test_kernels test_plan test_search test_shm_meeting test_shm_ring
	ctest --test-dir build/floors-thread --output-on-failure --no-tests=error -R '^(test_kernels|test_plan|test_search|test_shm_meeting|test_shm_ring)$$'
endef

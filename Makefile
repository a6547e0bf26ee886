# Everything a contributor or a newcomer runs. `make help` lists the targets.
# Nothing is needed but Python 3.10 to 3.14 (with venv and pip) and make.

VENV := .venv
BIN := $(VENV)/bin
# An environment whose Python is gone, as after an upgrade of the system, is made anew.
STAMP := $(VENV)/.installed
ifneq ($(shell test -e $(STAMP) && ! $(BIN)/python -c '' 2>/dev/null && echo broken),)
$(shell rm -f $(STAMP))
endif

# Waiting threads sleep instead of spinning, so a busy machine slows a run only a little.
RUN_ENV := OMP_WAIT_POLICY=PASSIVE
# One OpenMP thread per test worker: two workers on two cores do not fight for them. numba keeps its
# threads, so that the kernels are tested in parallel.
TEST_ENV := $(RUN_ENV) OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# Without byte code every start would compile torch and diffusers again, tens of seconds each time.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that all packages come built for; then 3.14, which xatlas does not (textures
# are simpler without it). `make PYTHON=/path/to/python3.12 setup` names another.
PYTHON ?= $(shell for last in 13 14; do \
	for p in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do \
	$$p -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $$last))" 2>/dev/null \
	&& echo $$p && exit; done; done)

EXTRAS_VENV := $(VENV)/extras
EXTRAS ?= geometry,log,photos,triton,view
EXTRAS_TESTS := tests/studio/export/test_remesh.py tests/studio/test_tensorboard_log.py \
	tests/studio/test_asset_commands.py tests/renderers/test_triton_kernels.py \
	tests/renderers/test_triton_raster.py tests/image_tools/personalization/test_photos.py
# viser asks for an older rich than ours, and the interpreter of Triton 3.6 breaks with NumPy 2.4.
EXTRAS_PINS := 'rich<15' 'triton>=3.9'

# All modules with tensors but those with numba's kernels, which numba can only cache as they are.
SHAPED := guidance image_tools studio $(subst /,.,$(basename $(filter-out %__init__.py, \
	$(wildcard renderers/*.py renderers/fields/*.py renderers/backends/torch_*.py))))
SHAPES_TESTS ?= tests/guidance tests/renderers
comma := ,
empty :=

WORKERS ?= 2
PROMPT ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-shapes test-extras lint format bench

help: ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install the studio with its test tools.

# The stamp is older than pyproject.toml or constraints.txt only when they changed: then, and only
# then, pip runs again. A failed install leaves no stamp.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.14 found - name one: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "error: $(PYTHON) cannot make a virtual environment - on Debian: apt install python3-venv" >&2; exit 1; }
	@rm -f $@
	$(BIN)/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[test]'
	@touch $@

# The prompt goes through the environment, as it was typed: pasted into the recipe, its quotes,
# dollars and backticks would be read by make and by the shell.
unexport PROMPT
demo: export DEMO_PROMPT = $(value PROMPT)
demo: $(STAMP) ## Make a 3D asset with the shipped models; PROMPT="a blue duck" changes it.
	$(BIN)/studio run demo $(if $(value PROMPT),--prompt "$$DEMO_PROMPT") $(ARGS)

test: $(STAMP) ## Run the tests, without the slow and the GPU ones.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-all: $(STAMP) ## Run all tests; GPU tests skip themselves without one.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m '' $(ARGS)

test-shapes: $(STAMP) ## Run the tests of rendering and guidance with the shapes of tensors checked.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -p tests.shape_checks \
		-m 'not slow and not gpu and not wrong_shapes' \
		--jaxtyping-packages=$(subst $(empty) ,$(comma),$(strip $(SHAPED))),tests.shape_checks.check_shapes \
		$(SHAPES_TESTS) $(ARGS)

# Optional packages get an environment of their own on top of .venv, which stays as it is: one of
# them is GPL-3, and together they bring a hundred others. Triton proves its kernels in its
# interpreter, so that needs no GPU.
test-extras: $(STAMP) ## Install the extras aside and run their tests, slow ones too.
	@test -x $(EXTRAS_VENV)/bin/python || $(BIN)/python -m venv $(EXTRAS_VENV)
	@$(EXTRAS_VENV)/bin/python -c 'import sysconfig, sys, pathlib; \
		pathlib.Path(sysconfig.get_path("purelib"), "base.pth").write_text(sys.argv[1] + "\n")' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@{ grep -v '^rich==' constraints.txt; printf '%s\n' $(EXTRAS_PINS); } > $(EXTRAS_VENV)/constraints.txt
	$(EXTRAS_VENV)/bin/python -m pip install --quiet --constraint $(EXTRAS_VENV)/constraints.txt \
		--editable '.[$(EXTRAS)]'
	$(TEST_ENV) $(EXTRAS_VENV)/bin/python -m pytest -n $(WORKERS) -m '' $(EXTRAS_TESTS) $(ARGS)

lint: $(STAMP) ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Repair what lint would complain about, as far as a tool can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure speed ratios and gradient errors against their bars; ARGS=--smoke tries it.
	@status=0; for file in benchmarks/*/bench_*.py; do \
		module=$$(echo "$${file%.py}" | tr / .); echo "== $$module"; \
		$(RUN_ENV) $(BIN)/python -m $$module $(ARGS) || status=1; \
	done; exit $$status

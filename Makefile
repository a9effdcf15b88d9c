# make demo       environment, engine, server, one RAW file denoised
# make test       lint, types, tests
# make serve      the server on this machine, until Ctrl-C
# make bench      what it costs on this machine's processor, 17 to 30 minutes
# make gpu-check  everything that needs an NVIDIA card; GPU_CHECK="--budget SECONDS --checks NAME ..."; with the packages
#                 of GPU_PYTHON, where that is told, and no environment of its own
# make engine     the shipped network's, in the place of any other; test and bench do so too
.PHONY: demo test test-servers test-others style types serve bench gpu-check engine installed-engine

# the first that the project runs on; what pip says of python3 where there is none
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; \
  done || echo python3)
BIN := .venv/bin
MANIFEST := model_repository/denoiser/1/openvino/manifest.json
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# where NVIDIA's installer leaves nvcc, which is on no PATH then
export PATH := $(PATH):/usr/local/cuda/bin

demo: installed-engine
	$(BIN)/exposure demo --out demo

test: .venv/installed
	@# side by side: each keeps one processor busy
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target engine types style
	@# two halves (tests/conftest.py), for most tests wait for something, or use one processor
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target --keep-going test-servers test-others

test-servers: .venv/installed
	$(BIN)/pytest -m servers

test-others: .venv/installed
	$(BIN)/pytest -m 'not servers'

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	@# mypy cannot follow the package mapping: show it the layout that the mapping makes
	@rm -rf build/types && mkdir -p build/types/exposure
	@ln -s $(CURDIR)/exposure/* build/types/exposure/
	@ln -s $(CURDIR)/export $(CURDIR)/client $(CURDIR)/kernels $(CURDIR)/training build/types/exposure/
	MYPYPATH=build/types $(BIN)/mypy -p exposure
	MYPYPATH=build/types:benchmarks:tests $(BIN)/mypy benchmarks tests

serve: installed-engine
	$(BIN)/exposure serve

bench: engine
	for script in kernels engine server end_to_end scaling; do $(BIN)/python benchmarks/$$script.py >/dev/null || exit 1; done
	$(BIN)/python benchmarks/report.py

gpu-check:
	@$(or $(GPU_PYTHON),$(PYTHON)) benchmarks/gpu_machine.py  # or one sentence, where there is no card
	@if [ -n "$(GPU_PYTHON)" ]; then python="$(GPU_PYTHON)"; \
	elif $(NO_INDEX); then python=$(PYTHON); \
	  if [ -e .venv/installed ] && [ -x $(BIN)/python ]; then python=$(BIN)/python; fi; \
	  echo "gpu-check: pip reaches no packages here; going on with $$python"; \
	elif $(MAKE) --no-print-directory .venv/installed; then python=$(BIN)/python; \
	  for extra in rtx tensorrt; do $(MAKE) --silent .venv/with-$$extra >.venv/$$extra.log 2>&1 \
	    || { echo "gpu-check: pip cannot install .[$$extra] here, and what needs it is not checked. It said:"; \
	         tail -n 3 .venv/$$extra.log; }; done; \
	else python=$(PYTHON); echo "gpu-check: pip made no environment; going on with $$python"; fi; \
	$$python benchmarks/gpu_check.py $(GPU_CHECK)

# a pip that is there and finds no index at once, before another tries again and again
NO_INDEX = $(PYTHON) -m pip --version >/dev/null 2>&1 \
  && ! $(PYTHON) -m pip --retries 0 --timeout 5 index versions pip >/dev/null 2>&1

installed-engine: .venv/installed
	@if [ -f $(MANIFEST) ] && ! grep -q "$$(sha256sum < checkpoints/unet.safetensors | cut -c -64)" $(MANIFEST); \
	then echo "the engine that is installed is of another checkpoint, and stays; make engine replaces it"; \
	else $(MAKE) --no-print-directory engine; fi

engine: .venv/installed
	$(BIN)/python export/build_engine.py --target openvino

.venv/installed: pyproject.toml kernels/CMakeLists.txt $(wildcard kernels/csrc/* kernels/backend/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# for gpu-check: libraries of a card
.venv/with-%: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev,$*]'
	@touch $@

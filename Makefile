# Calotype's verbs. Everything lands in .venv*, .cache, tests/portable/node_modules, runs and models; `make clean` removes
# all but the last two.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
TORCH := $(shell grep -E '^(torch|torchvision)==' constraints.txt)
DATA ?=
MODEL ?=
MODELS ?=
FUZZ_EXAMPLES ?= 20000

.PHONY: help setup bench soak fuzz demo test test-serving test-cuda-absent test-browser test-portable test-all-backbones lint format protos protos-check image image-test clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.ready ## make .venv with trainer, server and tools

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[trainer,mlflow,serving,test,lint]'
	touch $@

demo: setup ## check, fit, evaluate, export, serve and classify; DATA=folder for your own pictures
	$(BIN)/python -m demo.run $(DATA)

# Each test once, where it belongs: what runs without torch is tested without it.
test: setup test-serving ## run every test
	$(BIN)/python -m pytest --ignore=tests/bundle --ignore=tests/serving

.venv-serving/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-serving
	.venv-serving/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[serving,test]'
	touch $@

# Triton's client and our protobuf exclude one another: see the file.
.venv-tritonclient/.ready: tests/serving/tritonclient.txt
	$(PYTHON) -m venv .venv-tritonclient
	.venv-tritonclient/bin/python -m pip install --quiet --requirement tests/serving/tritonclient.txt
	touch $@

test-serving: .venv-serving/.ready .venv-tritonclient/.ready ## run the tests of bundle and serving where torch is not installed
	! .venv-serving/bin/python -c 'import torch' 2>/dev/null
	.venv-serving/bin/python -m pytest tests/bundle tests/serving

# Without CUDA's own libraries, gigabytes that would not start here anyway.
.venv-gpu/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[server-base]' onnxruntime-gpu
	touch $@

test-cuda-absent: setup .venv-gpu/.ready ## prove on a machine without a GPU that onnxruntime-gpu fails closed
	$(BIN)/python -m pytest tests/serving/test_cuda_absent.py

test-portable: setup ## run the portable graph in JavaScript too; installs node and npm where root on Debian has none
	command -v node && command -v npm || { apt-get update && apt-get install --yes --no-install-recommends nodejs npm; }
	npm ci --prefix tests/portable
	$(BIN)/python -m pytest tests/trainer/test_portable.py

test-all-backbones: setup ## export and prove a network of every family: a quarter of an hour
	$(BIN)/python -m pytest -m all_backbones

test-browser: setup ## run the tests that open pages in Chromium; installs it when root on Debian
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq --yes chromium; }
	CALOTYPE_BROWSER=required $(BIN)/python -m pytest -m browser

lint: setup ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## mend style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup ## write protos/*_pb2* from protos/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

protos-check: protos ## fail where the committed protos are not what protoc makes
	git diff --exit-code -- protos

bench: setup ## measure the server against its targets; DATA=folder of JPEGs and MODEL=models/NAME/VERSION for your own
	named=$$($(BIN)/python -m benchmarks.prepare '$(DATA)' '$(MODEL)') && $(BIN)/python -m benchmarks.serving_targets $$named

soak: setup ## look for leaks under ugly traffic, 20 minutes; SOAK_MINUTES=n, MODELS=folder for your own
	$(BIN)/python -m benchmarks.soak $(if $(MODELS),--models '$(MODELS)')

fuzz: setup ## throw FUZZ_EXAMPLES=20000 broken inputs at each of decoder, manifest, tokens and server
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz tests/serving/test_open_inference_fuzz.py

image: ## build the server's image with docker, podman or buildah; BASE_IMAGE=name to stand on another
	deploy/image.sh

image-test: .venv-serving/.ready ## prove the image in a locked-down container; wants root on Debian
	deploy/image_test.sh

clean: ## remove environments and caches, not runs or models
	rm -rf .venv .venv-serving .venv-tritonclient .venv-gpu .cache tests/portable/node_modules

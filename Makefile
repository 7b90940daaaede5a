# Two commands do everything on a bare machine with Python 3.11 and make: `make run` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run cluster test lint types proto bench loadtest crash sim clean help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,loadtest]'
	@touch $@

run: $(VENV)/installed  ## a member on 127.0.0.1:2379, data in ./default.kvorum
	exec $(BIN)/kvorum $(ARGS)

cluster: $(VENV)/installed  ## three members on 127.0.0.1:2379, 22379 and 32379, data in ./cluster.kvorum
	exec $(BIN)/python -m ops.local_cluster $(ARGS)

test: lint types  ## the whole test suite, with lint and types; JOBS=2 files at a time
	$(BIN)/python -m pytest --numprocesses=$(or $(JOBS),2) --dist=loadfile $(ARGS)

lint: $(VENV)/installed-test  ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test  ## mypy, strict
	$(BIN)/mypy

proto: $(VENV)/installed-test  ## regenerate kvorum/pb from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. $$(cd proto && ls kvorum/pb/*.proto)

bench: $(VENV)/installed-test  ## ours against etcd, side by side
	$(BIN)/python -m loadtest.bench $(ARGS)

loadtest: $(VENV)/installed-test  ## locust against servers of its own: SCENARIO=mixed_kv USERS=20 DURATION=10s TARGET=member
	$(BIN)/python -m loadtest.run_scenario $(or $(SCENARIO),mixed_kv) --users $(or $(USERS),20) \
	  --duration $(or $(DURATION),10s) --target $(or $(TARGET),member) --members $(or $(MEMBERS),1) \
	  --tenants $(or $(TENANTS),4) $(ARGS)

crash: $(VENV)/installed-test  ## the long round of faults: kills of one member (ROUNDS=25), a cluster (CLUSTER_SECONDS=300)
	KVORUM_CRASH_ROUNDS=$(or $(ROUNDS),25) KVORUM_CLUSTER_SECONDS=$(or $(CLUSTER_SECONDS),300) $(BIN)/python -m pytest tests/crash -s $(ARGS)

sim: $(VENV)/installed-test  ## simulated clusters: SEEDS=1000 by default, or one SEED with its trace
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) $(ARGS)

clean:  ## the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info

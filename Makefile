# Each target makes the environment it needs. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test unit lint audit format bench soak up down status doctor deploy lock clean

BIN := .venv/bin

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: requirements.lock pyproject.toml
	@sh deployments/bootstrap.sh

demo: .venv/.installed ## the main job on sample and simulated candles: ingest, train, analyse, backtest, report
	@$(BIN)/tradeflows demo

test: unit ## all tests; unit tests first, then those that start real servers
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q -n 2 --dist loadfile -m integration

# passive, or the threads of two test processes spin against each other
unit: .venv/.installed ## the unit tests alone
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q -n 2 --dist loadfile -m "not integration"

lint: .venv/.installed ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# strict: a package that the service does not know is a failure, not a silence. SERVICE=osv asks api.osv.dev instead
audit: .venv/.installed ## known vulnerabilities of what is locked, from pypi.org
	@$(BIN)/pip-audit --requirement requirements.lock --disable-pip --require-hashes --strict --progress-spinner off \
		--vulnerability-service $(or $(SERVICE),pypi) $(AUDIT_FLAGS)

format: .venv/.installed ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# the peers of the benchmark, beside the locked packages
.venv/.bench: requirements-bench.lock .venv/.installed
	@uv=$$(command -v uv || echo .uv/bin/uv); VIRTUAL_ENV=.venv $$uv pip install --quiet --require-hashes -r requirements-bench.lock
	@touch $@

bench: .venv/.bench ## measure speed, as ratios against peers in the same run
	@$(BIN)/python -m deployments.bench

soak: .venv/.installed ## faults and kills, sped up: store, ledger, registry and analyses must end as without
	@$(BIN)/python -m deployments.soak
	@$(BIN)/python -m deployments.soak_stack

.PHONY: scale
scale: .venv/.installed ## the same work on PostgreSQL, Redis, three workers and Dask: equal results, in some minutes
	@$(BIN)/pytest -q -m scale tests/scale

up: .venv/.installed ## start Prefect, MLflow, a worker and the sandbox exchange on loopback
	@$(BIN)/tradeflows up --detach --sandbox

down: ## stop what `make up` started
	@$(BIN)/tradeflows down

status: .venv/.installed ## what runs, and what ran last
	@$(BIN)/tradeflows status

doctor: .venv/.installed ## what could be wrong, and what to do
	@$(BIN)/tradeflows doctor

deploy: .venv/.installed ## make the Prefect server hold what prefect.yaml declares
	@$(BIN)/tradeflows deploy

lock: .venv/.installed ## renew requirements.lock from pyproject.toml
	@uv=$$(command -v uv || echo .uv/bin/uv); $$uv pip compile --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-header --quiet pyproject.toml --group dev --extra scale -o requirements.lock; \
	$$uv pip compile --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-header --quiet --group bench -c requirements.lock -o requirements-bench.lock

clean: ## remove the environment, caches and local data
	@rm -rf .venv .uv .tradeflows .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The commands of this repository. They need make and Python 3.11 or newer, and install everything else into .venv here
# (and Debian packages that some tests need, when run as root).

PYTHON ?= $(shell scripts/find-python)
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 9000
# Tests wait more than they compute: five processes for two processors.
JOBS   ?= $(shell expr $$(nproc 2>/dev/null || echo 2) \* 5 / 2)
# What the contract tests in pure Python leave out: other loops, which the compiled core is tested on, and protocols,
# which have no core.
PURE   ?= not debug and not eager and not uvloop and not protocol
# SLOW=yes: also what is marked slow.
SLOW   ?=
# The benchmark's own environment, with the peers: one for each Python, so that PYTHON=python3.11 measures on that one.
BENCH  ?= .venv-bench-$(if $(PYTHON),$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))

# The environment of the servers that `prefork run` is tested with.
PROGRAMS ?= .venv-programs$(if $(PYTHON),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))

# The environment of the fuzzer, and how long it runs.
FUZZ    ?= .venv-fuzz$(if $(PYTHON),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
COUNT   ?= 1000000
TIME    ?= 300

.PHONY: serve test test-all histories soak inject bench bench-quick bench-scrapers instructions check format clean
.PHONY: cluster native test-native test-programs bench-programs bench-proxies bench-capacity dist fuzz

## Serve the echo example on all cores.
serve: $(VENV)/.installed
	@echo "Type in another terminal:  nc localhost $(PORT)    (each line comes back; ^C here stops it)"
	@cd examples && exec ../$(BIN)/prefork serve echo:handle --bind :$(PORT)

## Install what the tests need, and run them, but for the slow ones.
test: $(VENV)/.developing
	@scripts/install-debian-packages
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(if $(SLOW),-m "") $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,PREFORK_PURE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -k "$(PURE)" tests/contract)

## Build the compiled core again, in place.
native: $(VENV)/.installed
	PREFORK_REQUIRE_NATIVE=1 $(BIN)/python -m pip install --quiet --no-deps --editable .

## Test the compiled core under sanitizers, against pure Python, and for leaks; some minutes. COUNT=1000000 for more.
test-native:
	@scripts/test-native

## Run servers that other people wrote with their own clients, by themselves and in workers; some minutes.
test-programs: $(PROGRAMS)/.prepared
	TEST_PROGRAMS=all $(PROGRAMS)/bin/python -m pytest -n $(JOBS) -m "" tests/programs $(PYTEST_ARGS)

## Make the sdist and the wheel in dist/, check them, and try both in an empty environment.
dist: $(VENV)/.developing
	@scripts/make-dist

## All of them, on every supported Python of this machine.
test-all:
	@scripts/install-debian-packages
	@scripts/test-all

## 2 million steps of random histories for the supervisor's decisions; some minutes.
histories: $(VENV)/.developing
	HISTORIES=20000 STEPS=100 $(BIN)/python -m pytest -q -s -o faulthandler_timeout=0 \
		tests/unit/test_roster_histories.py $(PYTEST_ARGS)

## Fuzz the parser of the PROXY protocol, by itself and beside two others, for COUNT inputs or TIME seconds each.
fuzz: $(FUZZ)/.prepared
	$(FUZZ)/bin/python -m fuzz --count $(COUNT) --seconds $(TIME)
	$(FUZZ)/bin/python -m fuzz --count $(COUNT) --seconds $(TIME) --compare

## Prove that no connection is lost: load and faults, for most of an hour. For less: SOAK_ARGS="reload --scale 0.01".
soak: $(VENV)/.developing
	$(BIN)/python -m soak $(SOAK_ARGS)

## Three hosts behind HAProxy and nginx, in namespaces, and what their clients lose; 30 minutes.
## For less: CLUSTER_ARGS="reload kill --scale 0.1".
cluster: $(VENV)/.developing
	@scripts/install-debian-packages
	$(BIN)/python -m cluster $(CLUSTER_ARGS)

## Have every system call fail, one in each run; most of a day. For less: INJECT_ARGS="--scale 0.05 --minutes 20".
inject: $(VENV)/.developing
	@scripts/install-debian-packages
	$(BIN)/python -m inject $(INJECT_ARGS)

## Lint, types, spelling, and the tests of the source itself: the direction of imports, plain words.
check: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest -q -m "" tests/meta

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## Compare prefork with its peers, and write the section of this Python in docs/benchmarks.md; 25 minutes.
## BENCH_ARGS=--help lists the options; PYTHON=python3.11 measures on another Python.
bench: $(BENCH)/.benching
	@scripts/install-debian-packages bench
	$(BENCH)/bin/python -m bench $(BENCH_ARGS)

## What matters most of it, in less than a minute; printed, and written to build/bench.
bench-quick: $(BENCH)/.benching
	@scripts/install-debian-packages bench
	$(BENCH)/bin/python -m bench --quick $(BENCH_ARGS)

## Measure what `prefork run` adds to aiohttp and uvicorn, in CPU time per request; two minutes.
bench-programs: $(PROGRAMS)/.prepared
	$(PROGRAMS)/bin/python -m bench.programs $(BENCH_ARGS)

## What 1,000 slow clients of --metrics cost the clients of the service; two minutes.
bench-scrapers: $(VENV)/.developing
	$(BIN)/python -m bench.scrapers $(BENCH_ARGS)

## Measure examples/proxy.py beside HAProxy: CPU time per echo, per connection and per MiB; a minute.
bench-proxies: $(VENV)/.developing
	@scripts/install-debian-packages bench
	$(BIN)/python -m bench.proxies $(BENCH_ARGS)

## Hold N idle connections, plain and TLS: bytes each, CPU at rest, time to drain and to reload; minutes.
CONNECTIONS ?= 100000
bench-capacity: $(VENV)/.developing
	@scripts/install-debian-packages bench
	$(BIN)/python -m bench.capacity --connections $(CONNECTIONS) $(BENCH_ARGS)

## Count the instructions of an echo, of 32 lines and of a short connection with callgrind: a minute on an idle machine.
instructions: $(VENV)/.developing
	$(BIN)/python -m bench.instructions

clean:
	rm -rf .venv .venv-* build dist

$(VENV)/.created:
	@test -n "$(PYTHON)" || \
		{ echo "no Python 3.11 or newer found: install one, or use make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

# Installing builds the compiled core, if there is a C compiler; the last line says which core runs.
$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py $(wildcard native/*.[ch])
	$(BIN)/python -m pip install --quiet --editable .
	@$(BIN)/prefork --version
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(BENCH)/.benching: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(BENCH) $(BENCH)/.installed
	$(BENCH)/bin/python -m pip install --quiet --group bench
	$(BENCH)/bin/python -m bench.peers
	@touch $@

$(FUZZ)/.prepared: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(FUZZ) $(FUZZ)/.installed
	$(FUZZ)/bin/python -m pip install --quiet --group fuzz
	@touch $@

$(PROGRAMS)/.prepared: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(PROGRAMS) $(PROGRAMS)/.installed
	$(PROGRAMS)/bin/python -m pip install --quiet --group programs
	@touch $@

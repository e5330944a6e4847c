# snapvm: `make test` and `make demo` set up what they need; `make help` lists the rest.
# Everything made is below build/.

PYTHON3 ?= python3
PREFIX  ?= /usr/local
INSTALLED = $(PREFIX)/lib/snapvm
MANUALS   = $(PREFIX)/share/man/man1
VENV    := build/venv
BIN     := $(VENV)/bin
PYTEST   = $(BIN)/python -m pytest
# A worker for each core; a lab has both cores for itself.
SPREAD   = -n auto --maxprocesses=8 --dist worksteal
JUNIT    = --junit-xml=build/junit/$(subst test-,,$@).xml
LAB_TESTS = $(PYTEST) tests/lab -m 'not long' --lab-minutes=62 --durations=12
LAB_JUNIT = build/junit/lab.xml
BOOKWORM_TESTS = $(addprefix tests/lab/test_, kvm_contract.py kvm_chain.py kvm_failures.py \
  kvm_consistency.py kvm_ways.py xen_consistency.py xen_keeper.py xen_large.py)

# Compiled once, below build/ as everything: a quarter of the unit tests' time.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help tools venv test test-unit test-contract test-house test-integration test-lab test-lab-bookworm test-long lint types format man demo fuzz crash-sweep install uninstall clean

help:          ## Say what can be made
	@grep -hE '^[a-z%-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):[^#]*## /  make \1 \t/' | expand -t 26

define make_venv
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'snapvm needs Python 3.11 or newer: make PYTHON3=/path/to/python3' >&2; exit 1; }
	@$(PYTHON3) -m venv $(1) \
	  || { echo 'install python3-venv (apt-get install python3-venv), then make again' >&2; exit 1; }
endef

# The venv follows its recipe; a half-made one has no stamp and is completed.
$(VENV)/.stamp: pyproject.toml
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
venv: $(VENV)/.stamp

tools:
	@sh tests/lab/tools.sh

test: lint types test-unit test-contract test-house test-integration test-lab  ## Every test, the lab's too

test-unit: $(VENV)/.stamp   ## Unit tests: no root, no virtual machine
	$(PYTEST) tests/unit $(SPREAD) $(JUNIT)

test-contract: $(VENV)/.stamp  ## The contract of each seam, on the fakes
	$(PYTEST) tests/contract $(JUNIT)

test-house: $(VENV)/.stamp  ## House rules: layers, doors, man page, schema, README
	$(PYTEST) tests/house $(JUNIT)

test-integration: $(VENV)/.stamp tools  ## Real processes, QEMU and installing, without a lab; a sample of `make fuzz`
	$(PYTEST) tests/integration -m 'not long' $(SPREAD) $(JUNIT)

test-lab: $(VENV)/.stamp tools  ## The real thing: LVM, libvirt and KVM in the lab
	$(LAB_TESTS) --junit-xml=$(LAB_JUNIT) || { $(BIN)/python -m tests.lab.died $(LAB_JUNIT) && \
	  echo 'a lab died, which is not a failed test: what it was doing, once more' && \
	  $(LAB_TESTS) --last-failed --junit-xml=build/junit/lab-again.xml; }

test-lab-bookworm: $(VENV)/.stamp tools  ## The same contracts on Debian 12, and what is different there
	SNAPVM_LAB_SUITE=bookworm $(PYTEST) $(BOOKWORM_TESTS) -m 'lab and not long' $(JUNIT)

test-long: $(VENV)/.stamp   ## What takes longer than a sitting
	$(PYTEST) tests -m long $(JUNIT)

lint: $(VENV)/.stamp        ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp       ## mypy --strict
	$(BIN)/mypy

format: $(VENV)/.stamp      ## Let ruff put the sources in order
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

man: $(VENV)/.stamp         ## Write man/snapvm.1 anew from the command line
	$(BIN)/python -m man.generate

bench-%: $(VENV)/.stamp     ## Measure cli, lvm, kvm or xen, into build/bench/NAME.json
	$(BIN)/python -m tests.bench.$*

fuzz: $(VENV)/.stamp        ## A million spoiled inputs for everything that reads; build/fuzz.json
	$(BIN)/python -m tests.fuzz

crash-sweep: $(VENV)/.stamp tools  ## Kill snapvm at every point of every command, in both labs; build/crash.json
	$(BIN)/python -m tests.lab.crash $(SWEEP)

demo: $(VENV)/.stamp tools  ## See it work: the lab, a take, damage, a rollback, the proof
	$(BIN)/python -m tests.lab.demo

# Debian lets pip install only into a venv; this one sees Debian's modules, libvirt's above all.
# Nobody's ~/.local counts, which Python would look into first: sudo may keep HOME.
install:       ## Install below PREFIX (/usr/local), in a venv that uses what the system has
	$(call make_venv,--system-site-packages $(INSTALLED))
	@rm -rf build/lib build/bdist.*  # setuptools would install what an earlier build has left there
	env -u PYTHONPYCACHEPREFIX $(INSTALLED)/bin/python -s -m pip install --quiet --disable-pip-version-check .
	sed -i '1s|/python[0-9.]*$$|& -s|' $(INSTALLED)/bin/snapvm
	@mkdir -p $(PREFIX)/bin $(MANUALS)
	ln -sf ../lib/snapvm/bin/snapvm $(PREFIX)/bin/snapvm
	install -m 644 man/snapvm.1 $(MANUALS)/snapvm.1
	@$(PREFIX)/bin/snapvm --version

uninstall:     ## Remove what `make install` installed; snapshots and settings stay
	rm -rf $(INSTALLED) $(PREFIX)/bin/snapvm $(MANUALS)/snapvm.1

clean:         ## Remove everything that was made
	rm -rf build

-include tests/lab/lab.mk
lab-image lab-kvm lab-xen: $(VENV)/.stamp tools

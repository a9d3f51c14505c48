# SPDX-License-Identifier: GPL-2.0

# `make help` lists what there is. KDIR is the kernel build directory the module is built against:
# by default the running kernel's where that is of the module's series (scripts/kdir makes one), else
# the lab's (scripts/lab).

kbuild = +@scripts/kbuild $(if $(KDIR),--kdir '$(KDIR)')
variables = $(filter-out KDIR=%,$(MAKEOVERRIDES))

modules: ## build rnull-loop.ko (default)
	$(kbuild) modules $(variables)

install: ## the module as this machine's loop driver (as root; DKMS=1, RELEASE=, DESTDIR=)
	@scripts/install $(if $(DKMS),--dkms) $(if $(RELEASE),--release '$(RELEASE)') \
		$(if $(DESTDIR)$(INSTALL_MOD_PATH),--destdir '$(or $(DESTDIR),$(INSTALL_MOD_PATH))')

uninstall: ## take that away again
	@scripts/install --remove

clean: ## remove what was built
	@scripts/kbuild clean

demo: ## the main job on real input, from nothing
	@scripts/demo

test: ## every test, on the host and in the VM; those of the ABI on the C driver, too
	@scripts/test
	@scripts/test --driver loop --abi

test-debug: ## the tests in the VM and KUnit on a kernel with KASAN, lockdep, kmemleak, ...
	@scripts/test --kernel debug

soak: ## races, faults and power cuts at random on that kernel (MINUTES=30, SEED=)
	@scripts/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: ## raw backing, C driver and this one measured in turns (BENCH=full: the whole matrix)
	@scripts/bench

check: ## format, clippy, documentation, shell scripts
	@scripts/check

matrix: ## the module for other configurations, architectures and compilers
	@scripts/matrix

doc: ## HTML documentation of the module in doc/
	$(kbuild) modules DOC=1

rust-analyzer: ## rust-project.json for an editor
	$(kbuild) rust-analyzer

rustfmt: ## format the Rust files
	@scripts/check --format

lab: ## prepare toolroot, kernel and VM
	@scripts/lab

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' Makefile | expand -t 16
	@echo 'A command in the VM: scripts/vm -- COMMAND (scripts/vm --help)'

.PHONY: modules install uninstall clean demo test test-debug soak bench check matrix doc rust-analyzer rustfmt lab help

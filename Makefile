# SPDX-License-Identifier: GPL-2.0

# `make help` lists the targets. KDIR is the kernel build directory for the module; scripts/kbuild
# --help explains the default.

kbuild = +@scripts/kbuild $(if $(KDIR),--kdir '$(KDIR)')
variables = $(filter-out KDIR=%,$(MAKEOVERRIDES))

modules: ## build rnull-loop.ko (default)
	$(kbuild) modules $(variables)

install: ## make the module this machine's loop driver (as root; RELEASE=, DESTDIR=)
	$(if $(DKMS),$(error DKMS=1 is no more: install the package that `make deb` builds))
	@scripts/install $(if $(RELEASE),--release '$(RELEASE)') \
		$(if $(DESTDIR)$(INSTALL_MOD_PATH),--destdir '$(or $(DESTDIR),$(INSTALL_MOD_PATH))')

uninstall: ## undo `make install`
	@scripts/install --remove

deb: ## the Debian package, which lets DKMS build the module for each kernel
	@scripts/deb

clean: ## remove the files that a build has made
	@scripts/kbuild clean

demo: ## show the module at work on real data, from nothing
	@scripts/demo

test: ## all tests, on the host and in the VM; those of the ABI also on the C driver
	@scripts/test
	@scripts/test --driver loop --abi

test-debug: ## the tests in the VM and KUnit on a kernel with KASAN, lockdep, kmemleak, ...
	@scripts/test --kernel debug

soak: ## random races, faults and power cuts on that kernel (MINUTES=30, SEED=)
	@scripts/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: ## measure raw backing, C driver and rnull_loop in turn (BENCH=full: the whole matrix)
	@scripts/bench

check: ## format, comments, clippy, documentation, shell scripts
	@scripts/check

matrix: ## build the module for all supported kernels, and test it on those that boot here
	@scripts/matrix

doc: ## HTML documentation of the module in doc/
	$(kbuild) modules DOC=1

rust-analyzer: ## rust-project.json for an editor
	$(kbuild) rust-analyzer

rustfmt: ## format the Rust files
	@scripts/check --format

lab: ## prepare the toolroot, the kernel and the VM
	@scripts/lab

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' Makefile | expand -t 16
	@echo 'A command in the VM: scripts/vm -- COMMAND (scripts/vm --help)'

.PHONY: modules install uninstall deb clean demo test test-debug soak bench check matrix doc rust-analyzer rustfmt lab help

# Each target works on a fresh clone and is what CI runs too. Root is needed for try, test and bench.
TARGET := $(or $(CARGO_TARGET_DIR),target)
KIT := cargo run --quiet --package berm-testkit --
SHIM := $(TARGET)/release/containerd-shim-berm-v1
PREFIX ?= /usr/local
DESTDIR ?=
# A registry that does not answer at once.
export CARGO_NET_RETRY ?= 10

.PHONY: build check test test-all test-guest critest readme-table try chaos bench install peers clean

# The two binaries, as they are shipped. Every pod has a shim of its own: linked at a fixed address and with
# its libraries, it has nothing to relocate, so that all of them share its pages (needs the C library's libc.a).
build:
	cargo build --release --package berm --bin berm
	cargo rustc --release --package berm --bin containerd-shim-berm-v1 -- -C relocation-model=static -C target-feature=+crt-static

# Formatting, lints, licences and arrows, documentation: all without a warning.
check: peers
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(KIT) deny
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Unit tests, kernel tests, and the pods of test-pods/ on a real containerd, on Berm and on runc.
test: peers build
	$(KIT) test --shim $(SHIM)

# What `make test` runs, and the tests that take minutes. Each line is one command of the testkit.
test-all: test
	$(KIT) suite --slow --shim $(SHIM)
	$(KIT) chaos --shim $(SHIM)
	$(KIT) crowd --shim $(SHIM)
	$(KIT) flood --shim $(SHIM)
	$(KIT) neighbours --shim $(SHIM)
	$(KIT) metrics --shim $(SHIM)
	$(KIT) critest --shim $(SHIM)

# What depends on cgroup v2, systemd, AppArmor or the kernel: in emulated guests of Debian.
test-guest: peers
	$(KIT) test-guest

# Kubernetes' own tests of a container runtime, on Berm and on runc; differences: test-pods/critest.toml.
critest: peers build
	$(KIT) critest --shim $(SHIM)

# The README's tables of what the pods and critest show, written by their runs.
readme-table: peers build
	$(KIT) suite --write-table --shim $(SHIM)
	$(KIT) critest --write-table --shim $(SHIM)

# Berm at work, for somebody who sees it for the first time.
try: peers build
	$(KIT) tour --shim $(SHIM)

# kill -9 of shims and of containerd at every moment of a pod's life; what is left, what was told.
chaos: peers build
	$(KIT) chaos --shim $(SHIM)

# Berm's shim beside runc and crun.
bench: peers build
	$(KIT) bench --shim $(SHIM)

install: build
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(SHIM) $(TARGET)/release/berm

# What the tests need and this machine lacks: packages, containerd, crictl. Looks only, the second time.
peers:
	$(KIT) peers

clean:
	cargo clean

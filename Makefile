# Index of commands. The checks themselves are Rust tests; this file installs what they need and says in which order.
#
#   make run                    build a release and start it for development, everything open on loopback
#   make test                   everything: set-up, format, lints, unit, end-to-end, SDK and browser tests, loom, scripts
#   make fuzz                   every fuzz target for FUZZ_SECONDS (60) on nightly
#   make million-publications   1,000,000 ingest publications over 1,000 channels, counted by SDK clients
#   make cut-200                200 cuts of an SDK client under 2,000 publications a second, in both encodings
#   make under-fire             minutes of channels left and taken up again, cuts and moving slots, on three nodes and a cluster
#   make sim-fleet              20,000 seeds of the simulation of several nodes (RINGWAY_SIM_SEEDS: another number)
#   make bench                  micro benches; make bench-fanout: Ringway, the floor and Bun side by side
#   make bench-all              every comparison below, with its dated page (root; some 110 minutes of a quiet machine)
#   make bench-presence         members of a channel of 1,000 to 100,000 leave and join again: CPU and bytes per event
#   make bench-deflate          a 1 KiB broadcast to 10,000 clients with and without compression: CPU, bytes, memory
#   make bench-storm            everybody connects at once: CPU per upgrade, and per upgrade with token and subscribe
#   make bench-latency          100,000 deliveries a second to 1,000 subscribers: latency beside the peers
#   make bench-direct           10,000 channels of one subscriber: what a message to one client costs, beside the floor and Bun
#   make bench-ingest           acknowledged publications to 10,000 channels: CPU, memory, messages between shards
#   make bench-cores            the same work on one shard and on two, beside the floor
#   make bench-million          a million idle connections and publications to all, beside the floor (root; 24 GiB; some minutes)
#   make bench-two-million      the same with two million (16 GiB of the kernel's)
#   make bench-tuning           what each setting of tuning/99-ringway.conf does (root)
#   make bench-rolling          three nodes on Redis behind HAProxy, 20,000 clients: all nodes restarted ten times under load
#   make bench-crossing         messages across the engine per publish, with up to 8 nodes: fails when a count is wrong
#   make bench-relay            publications from node to node at fixed rates, beside one node alone and a Centrifugo-style script
#   make bench-fleet-memory     a million channels with one subscriber each over two nodes: memory of node and engine per channel
#   make bench-memory           connections come and leave ten times, and receive 64 KiB once: memory after each
#   make instructions           counts instructions of the hot paths; fails above their ceilings (part of make test)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CARGO_TARGET_DIR ?= $(CURDIR)/target
# The binary that the tests start. They would build it themselves; once here is quicker.
export RINGWAY_BIN ?= $(CARGO_TARGET_DIR)/fast/ringway
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/fuzz_targets/*.rs)))
FUZZ_SECONDS ?= 60
SCRIPTS = .ci/run $(shell find tests bench src tuning -name '*.sh' -not -path '*/node_modules/*' -not -path '*/.venv/*' -not -path '*/target/*' 2>/dev/null)

.PHONY: help run test tools sdk fmt lint binary unit loom scripts fuzz miri deny million-publications cut-200 sim-fleet under-fire bench bench-micro bench-fanout bench-presence bench-deflate bench-direct bench-cores bench-million bench-two-million bench-tuning bench-storm bench-latency bench-all instructions bench-memory bench-ingest bench-backplane bench-rolling bench-crossing bench-relay bench-fleet-memory clean

help:
	@sed -n 's/^#   //p' Makefile

# Runs in the foreground; the program itself prints where to go. More arguments: make run ARGS="--shards 2"
run: tools
	cargo build --release -p ringway --bin ringway
	exec $(CARGO_TARGET_DIR)/release/ringway --dev $(ARGS)

test: tools sdk fmt lint binary unit instructions loom scripts
	@echo "make test: everything passed"

tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust through rustup; rust-toolchain.toml then chooses the version" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler and linker is missing: apt-get install build-essential" >&2; exit 1; }

sdk:
	@tests/sdk/install.sh

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets --quiet -- -D warnings

binary:
	cargo build --profile fast -p ringway --bin ringway

# Unit, property, corpus replay, house rules, end-to-end, SDK, browser. All test programs run, also behind a failed one.
unit: binary
	cargo test --workspace --no-fail-fast

# Decode, unmask, encode and the fan-out step, per item, under callgrind; in the binary's profile, so that little is built anew.
instructions:
	bench/micro/instructions.py --guard

# Model check of the lanes' sleep and wake. Its own target folder: the cfg would rebuild everything else.
loom:
	CARGO_PROFILE_DEV_OPT_LEVEL=2 RUSTFLAGS="--cfg loom" cargo test -p ringway-sys --lib --target-dir $(CARGO_TARGET_DIR)/loom loom | tee $(CARGO_TARGET_DIR)/loom.log
	@grep -q '^test result: ok. [1-9]' $(CARGO_TARGET_DIR)/loom.log || { echo "no loom test ran" >&2; exit 1; }

scripts:
	shellcheck $(SCRIPTS)
	@for file in tests/sdk/*.mjs; do node --check $$file; done
	@cd tests/sdk && PYTHONDONTWRITEBYTECODE=1 .venv/bin/python -c 'import ast, glob; [ast.parse(open(f).read(), f) for f in glob.glob("*.py")]'

# What the fuzzer finds goes below target/; the seeds in tests/fuzz/corpus are only read.
fuzz: tools
	@command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
	@cd tests/fuzz && for target in $(FUZZ_TARGETS); do \
		echo "== fuzz $$target, $(FUZZ_SECONDS) s"; \
		mkdir -p $(CARGO_TARGET_DIR)/fuzz-found/$$target; \
		cargo +nightly fuzz run --fuzz-dir . --target-dir $(CARGO_TARGET_DIR)/fuzz $$target \
			$(CARGO_TARGET_DIR)/fuzz-found/$$target corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1; \
	done
	@echo "make fuzz: no finding in $(FUZZ_TARGETS)"

# Where nightly has the miri component. System calls are not for Miri: only the buffer and token code.
miri:
	cargo +nightly miri test -p ringway-sys --lib -- buffers op

# Licences, duplicate and banned crates, sources; see deny.toml on advisories.
deny:
	@command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
	cargo fetch --locked --quiet
	cargo deny --offline check licenses bans sources

# RATE=publications per second in all (15000).
million-publications: tools sdk binary
	cargo test -p ringway-tests --test sdk -- --ignored --nocapture --exact a_million_publications

sim-fleet: tools
	cargo test --profile fast -p ringway-tests --test sim fleet -- --nocapture

cut-200: tools sdk binary
	cargo test -p ringway-tests --test sdk_behaviours -- --ignored --nocapture cut_200_times

bench: bench-micro

bench-micro:
	cargo bench -p ringway-bench

bench-fanout: tools
	cargo build --release -p ringway -p ringway-loadgen -p ringway-floor
	bench/fanout.sh

bench-presence: tools
	bench/presence.sh

bench-deflate: tools
	bench/deflate.sh

bench-storm: tools
	bench/storm.sh

bench-latency: tools
	bench/latency.sh

bench-direct: tools
	bench/direct.sh

bench-cores: tools
	bench/cores.sh

bench-memory: tools
	bench/memory.sh

bench-million: tools
	bench/million.sh

bench-two-million: tools
	bench/million.sh --scenario two-million --servers ringway

bench-all: tools
	bench/all.sh

bench-tuning: tools
	bench/tuning.sh

bench-ingest: tools
	bench/ingest.sh

# Three nodes on a Redis Cluster under churn, for minutes; the small version is part of make test.
under-fire: tools sdk binary
	cargo test --profile fast -p ringway-tests --test fleet -- --ignored --nocapture under_fire::

bench-rolling: tools
	bench/rolling.sh

bench-crossing: tools
	bench/crossing.sh

bench-relay: tools
	bench/relay.sh

bench-fleet-memory: tools
	bench/fleet_memory.sh

# The publish script at Redis and Valkey, and the engine's memory per channel.
bench-backplane: sdk
	bench/backplane.sh

clean:
	cargo clean
	rm -rf tests/sdk/node_modules tests/sdk/.venv tests/sdk/.cache

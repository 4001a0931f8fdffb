# One entry for people and for CI. Needs Debian 12 or 13, root, and a Rust toolchain.

enter := $(CURDIR)/tests/testbed/enter
test_features := fault-points

# Where `make install` puts things; DESTDIR goes before all of it.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# The programs that are installed.
BIN ?= target/release
share := $(DESTDIR)$(PREFIX)/share
doc := $(share)/doc/ocicle
# Files that name programs of ours, for where these are.
at_prefix := sed -i 's,"/usr/bin/ocicle-runtime"\, "/usr/local,"/usr,; \
    s,/usr/\(bin/ocicle-runtime\|libexec\),$(PREFIX)/\1,'

.PHONY: build demo examples test check doc bench testbed install uninstall deb

build:
	cargo build --release --locked

# Each shows one thing that can be done with open files at a restore.
examples: build workloads testbed
	for example in ping second-instance other-input cluster; do \
	    $(enter) examples/$$example/run || exit 1; \
	done

demo: build workloads testbed
	$(enter) examples/main-job/run

# The last line that this prints counts the tests.
test: check testbed
	cargo build --workspace --features $(test_features) --locked
	@if tests/testbed/have-nextest; then \
	    cargo nextest run --workspace --features $(test_features) --locked; \
	else \
	    cargo test --workspace --features $(test_features) --locked -- --test-threads 2; \
	fi

check: doc
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features $(test_features) --locked -- -D warnings

# target/doc/ocicle/index.html, what is private too. A link that leads nowhere is an error.
doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items \
	    --features $(test_features) --locked

# What the package holds too. A configuration that is there stays.
install:
	@test -x $(BIN)/ocicle || $(MAKE) build
	install -d $(DESTDIR)$(PREFIX)/bin $(doc)/examples $(doc)/docs/engines
	install $(BIN)/ocicle $(BIN)/ocicle-runtime $(DESTDIR)$(PREFIX)/bin/
	$(BIN)/ocicle generate man $(share)/man/man8
	$(BIN)/ocicle generate completions $(share)
	install -m 644 README.md SECURITY.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE $(doc)/
	install -m 644 docs/*.md $(doc)/docs/
	install -m 644 docs/engines/*.md $(doc)/docs/engines/
	sed -i -E 's,\[([^]]*)\]\((\.\./)*(src|tests|examples|fuzz|CONTRIBUTING)[^)]*\),\1,g' \
	    $(doc)/*.md $(doc)/docs/*.md $(doc)/docs/*/*.md
	sed -i 's,\(](\(\.\./\)*\)config/,\1examples/,g; s,](\.\./hooks/drivers,](../../../../libexec/ocicle/drivers,' \
	    $(doc)/README.md $(doc)/docs/*.md $(doc)/docs/*/*.md
	cp -r config/. $(doc)/examples/
	install -d $(DESTDIR)$(PREFIX)/libexec/ocicle
	ln -sf ../../bin/ocicle $(DESTDIR)$(PREFIX)/libexec/ocicle/criu-action
	ln -sf ../../bin/ocicle $(DESTDIR)$(PREFIX)/libexec/ocicle/ocicle-hook
	cp -r hooks $(doc)/examples/
	rm -r $(doc)/examples/hooks/drivers
	cp -r hooks/drivers $(DESTDIR)$(PREFIX)/libexec/ocicle/
	find $(doc) $(DESTDIR)$(PREFIX)/libexec/ocicle/drivers -type f -exec $(at_prefix) {} +
	install -d $(DESTDIR)$(SYSCONFDIR)/ocicle $(DESTDIR)$(SYSCONFDIR)/containers/containers.conf.d
	test -e $(DESTDIR)$(SYSCONFDIR)/ocicle/ocicle.toml || \
	    install -m 644 $(doc)/examples/ocicle.toml $(DESTDIR)$(SYSCONFDIR)/ocicle/ocicle.toml
	install -m 644 $(doc)/examples/podman/ocicle.conf \
	    $(DESTDIR)$(SYSCONFDIR)/containers/containers.conf.d/ocicle.conf

# Leaves the configuration, and the checkpoints.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/ocicle $(DESTDIR)$(PREFIX)/bin/ocicle-runtime
	rm -rf $(DESTDIR)$(PREFIX)/libexec/ocicle
	rm -f $(share)/man/man8/ocicle.8 $(share)/man/man8/ocicle-*.8
	rm -f $(share)/bash-completion/completions/ocicle $(share)/zsh/site-functions/_ocicle \
	    $(share)/fish/vendor_completions.d/ocicle.fish
	rm -f $(DESTDIR)$(SYSCONFDIR)/containers/containers.conf.d/ocicle.conf
	rm -rf $(doc)

# A Debian package of them in target/, by dpkg-deb alone.
deb:
	@test -x $(BIN)/ocicle || $(MAKE) build
	packaging/deb $(BIN) target

bench: build workloads testbed
	$(enter) tests/bench/run

# Has every system call of ocicle's go wrong, at random: `make campaign SECONDS=600 SEED=7`, for each of
# three commands on three machines.
SECONDS ?= 60
SEED ?= 1
.PHONY: campaign
campaign: testbed
	cargo build --features $(test_features) --locked
	OCICLE_CAMPAIGN_SECONDS=$(SECONDS) OCICLE_CAMPAIGN_SEED=$(SEED) \
	    cargo test --features $(test_features) --locked --test it campaign:: -- --nocapture --test-threads 1

# Ten minutes each. What they find goes below fuzz/target; the tests replay the corpus.
.PHONY: fuzz
fuzz:
	for target in grammar images texts documents layer archive tree; do \
	    fuzz/run $$target || exit 1; \
	done

.PHONY: workloads
workloads:
	cargo build --release --locked -p workloads

# Makes the tree before anything is timed.
testbed:
	$(enter) true

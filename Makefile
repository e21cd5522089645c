# The front door. `make demo` and `make test` do all their set-up themselves.
.PHONY: all build demo test bench install format lint asan ubsan setup clean
PRESET ?= release
CMAKE ?= cmake
# The environment's tools are found first, so that a machine's other pythons play no part.
export PATH := $(CURDIR)/.venv/bin:$(PATH):$(HOME)/.cargo/bin

all: build

setup:
	@scripts/setup

# Only the program: the tests are configured in by `make test`.
build: setup
	@$(CMAKE) --preset release -DLQUANT_TESTS=OFF --log-level=WARNING
	@$(CMAKE) --build --preset release --target lquant

demo: build
	@./build/lquant demo

test:
	@scripts/setup test
	@$(CMAKE) --preset release -DLQUANT_TESTS=ON --log-level=WARNING
	@$(CMAKE) --build --preset release
	@ctest --test-dir build --output-on-failure

# The kernels, gradients, codecs and file readers once more under the sanitizers. MLX itself is not instrumented.
asan ubsan:
	@scripts/setup test
	@$(CMAKE) --preset $@ -DLQUANT_TESTS=ON --log-level=WARNING
	@$(CMAKE) --build --preset $@ --target test_base test_checkpoint test_text test_kernels test_codec
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 ctest --test-dir build-$@ --output-on-failure -R '^(base|checkpoint|text|kernels|codec)$$'

# What needs the measured models and texts beside the project; a clone without them says so and passes on.
bench:
	@scripts/setup test
	@$(CMAKE) --preset release -DLQUANT_TESTS=OFF -DLQUANT_BENCHMARKS=ON --log-level=WARNING
	@$(CMAKE) --build --preset release
	@python benchmarks/bench.py --build build

install:
	@python3 -m pip install .

format:
	@git ls-files '*.cpp' '*.h' | xargs clang-format -i

lint: build
	@git ls-files '*.cpp' '*.h' | xargs clang-format --dry-run --Werror
	@git ls-files 'src/*.cpp' | xargs clang-tidy -p build --quiet

clean:
	@rm -rf build build-debug build-asan build-ubsan target

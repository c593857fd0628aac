# Makefile - short names for what CMake, ctest and the tools do. `make help` lists them.

PREFIX = /usr/local
DIR =
.DEFAULT_GOAL := build

# What each needs, as COMMAND:PACKAGE or FILE:PACKAGE (Debian's names); installed when missing.
need_build = cmake:cmake gcc:gcc make:make /usr/include/stdio.h:libc6-dev
need_lint = $(need_build) clang:clang clang-format:clang-format clang-tidy:clang-tidy \
	cppcheck:cppcheck python3:python3
need_test = $(need_lint) g++:g++ gdb:gdb pkg-config:pkgconf /usr/include/cmocka.h:libcmocka-dev spin:spin \
	redis-benchmark:redis-tools
ifneq ($(shell uname -m),aarch64)
need_test += aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64:qemu-user \
	/usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross
endif

# cmake starts makes of its own, which shall not take this one's options and variables for theirs.
cmake = env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL cmake
jobs = $(shell nproc)

.PHONY: build demo test test-long bench install format lint clean help

build:
	@tools/need.sh $(need_build)
	@mkdir -p build
	@$(cmake) --preset release >build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@$(cmake) --build build/release -j $(jobs)

demo:
	@echo "Building the library and the example examples/search."
	@tools/need.sh $(need_build)
	@mkdir -p build
	@{ $(cmake) --preset release && $(cmake) --build build/release -j $(jobs) --target search; } \
		>build/demo.log 2>&1 || { tail -n 40 build/demo.log; exit 1; }
	@echo "Running build/release/examples/search $(DIR)"
	@build/release/examples/search $(DIR)

test:
	@echo "Running every check that takes less than an hour together; the last line has the result."
	@tools/need.sh $(need_test)
	@tools/check.sh

test-long:
	@tools/need.sh $(need_test)
	@tools/check.sh long

bench:
	@tools/need.sh $(need_build)
	@mkdir -p build
	@$(cmake) --preset release >build/bench.log 2>&1 || { cat build/bench.log; exit 1; }
	@$(cmake) --build build/release -j $(jobs) --target bench

install:
	@tools/need.sh $(need_build)
	@mkdir -p build
	@$(cmake) --preset release >build/install.log 2>&1 || { cat build/install.log; exit 1; }
	@$(cmake) --build build/release -j $(jobs) --target loam loam_static
	@$(cmake) --install build/release --prefix "$$(realpath -m -s '$(PREFIX)')"
	@case '$(DESTDIR):$(PREFIX)' in :/usr|:/usr/local) ldconfig 2>/dev/null || true ;; esac

format:
	@tools/need.sh clang-format:clang-format
	@find src include examples bench tests compat \( -name '*.[ch]' -o -name '*.cpp' \) 2>/dev/null | \
		xargs clang-format -i

lint:
	@tools/need.sh $(need_lint)
	@tools/check.sh format layers cppcheck tidy

clean:
	rm -rf build

help:
	@echo "make                      build the library, the examples and the tests (build/release)"
	@echo "make demo [DIR=FOLDERS]   build and run examples/search over FOLDERS"
	@echo "make test                 all checks, less than an hour on two processors"
	@echo "make test-long            the tests that take longer"
	@echo "make bench                build the benchmarks (build/release/bench)"
	@echo "make install PREFIX=DIR   install headers, libraries, loam.pc and the CMake package"
	@echo "make format               format the code"
	@echo "make lint                 formatter, layers, cppcheck, clang-tidy"
	@echo "make clean                remove build/"

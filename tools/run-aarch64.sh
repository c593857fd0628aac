#!/bin/sh
# Run an aarch64 program under qemu-user. qemu 7.2 keeps a record per page of every mapping, so a
# reservation of a TiB would cost it gigabytes: the limit makes the library reserve less.
ulimit -v 33554432
exec qemu-aarch64 -L /usr/aarch64-linux-gnu "$@"

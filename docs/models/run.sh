#!/bin/bash
# run.sh MODEL [-Dflags]: check it exhaustively in a temporary folder and print one line.
# Environment: MEM (MiB, 7000), T (seconds, 600), CFLAGS. On an error the folder is kept: its trail is
# shown by `spin -t -p m.pml`, with the same flags.
m=$(realpath "$1"); shift
d=$(mktemp -d); cp "$m" "$d/m.pml"; cd "$d" || exit 1
{ spin "$@" -a m.pml && cc -O2 -DSAFETY -DCOLLAPSE -DVECTORSZ=1024 -DMEMLIM=${MEM:-7000} $CFLAGS -o pan pan.c; } >log 2>&1 || { cat log; exit 1; }
timeout ${T:-600} ./pan -m1000000 >out 2>&1 || echo "stopped after ${T:-600} s" >>out
echo "$(basename "$m") $*: $(grep -o 'errors: [0-9]*' out) $(awk '/states, stored/ {print $1}' out) states $(grep -E 'pan:1|too small|MEMLIM|out of memory|stopped' out | head -2 | tr '\n' ' ')$(grep -o 'elapsed time.*' out)"
if grep -q 'errors: 0' out; then rm -rf "$d"; else echo "  $d"; fi

#!/bin/sh
# Builds helper.bin from helper.c, by the command that is in its head, and notes
# what was built from what: TestOracleHelperIsItsSource compares.
set -e
cd "$(dirname "$0")"
$(sed -n 's|^//	\(gcc .*\)$|\1|p' helper.c)
sha256sum helper.c helper.bin >helper.sum

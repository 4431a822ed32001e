#!/usr/bin/env bash
# Makes k8s/chart/values.schema.json: the chart's own values (k8s/chart/values.own.json), and under `config` hookgate's
# configuration (config/schema.json). To be run when one of the two changes; tests/k8s compares.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 - "${1:-k8s/chart/values.schema.json}" <<'PYTHON'
import json
import sys
from pathlib import Path

own = json.loads(Path("k8s/chart/values.own.json").read_text())
hookgate = json.loads(Path("config/schema.json").read_text())
definitions = hookgate.pop("$defs")
for key in ("$schema", "title"):
    hookgate.pop(key, None)
own["$defs"] |= definitions | {"Configuration": hookgate}
Path(sys.argv[1]).write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n")
PYTHON

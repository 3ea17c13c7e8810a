"""The server API against its own description: `schemathesis` reads /api/openapi.json and calls every operation with data
that it allows and data that it does not, once with errors told by status and once as client libraries get them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import API_KEY, CONTROL_URL, ok, required

EXAMPLES = os.environ.get("EXAMPLES", "10")
SEED = os.environ.get("SEED", "35")

# A position that is not there (416) is refused although its shape is right. Single commands of a batch are refused in
# the body, which the check of api_schemathesis_checks.py sees.
CONFIG = """
hooks = "api_schemathesis_checks.py"
max-failures = 20

[checks]
positive_data_acceptance.expected-statuses = [200, 401, 403, 404, 409, 416]
{checks}

[[operations]]
include-name = "POST /api/batch"
checks.negative_data_rejection.enabled = false
"""


def schemathesis(what, mode, checks, folder):
    config = Path(folder) / f"{mode}.toml"
    config.write_text(CONFIG.format(checks=checks))
    command = [
        Path(sys.executable).with_name("schemathesis"),
        f"--config-file={config}",
        "run",
        f"{CONTROL_URL}/api/openapi.json",
        f"--url={CONTROL_URL}",
        f"--header=X-API-Key: {API_KEY}",
        f"--header=X-Centrifugo-Error-Mode: {mode}",
        "--phases=examples,coverage,fuzzing",
        # It would end the server; tests/drain has its own.
        "--exclude-path=/api/drain",
        f"--max-examples={EXAMPLES}",
        f"--seed={SEED}",
        "--generation-database=:memory:",
        "--suppress-health-check=all",
        "--request-timeout=20",
        "--continue-on-failure",
        "--no-color",
    ]
    # Whatever proxy the environment names, it is not for this.
    own = Path(__file__).parent
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(own)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    operations = [line.split(":")[1].strip() for line in done.stdout.splitlines() if line.strip().startswith("Tested:")]
    assert done.returncode == 0, f"{what}, seed {SEED}:\n{done.stdout}\n{done.stderr}"
    # Sixteen: a run that found no operation would pass, too.
    assert operations and int(operations[0]) >= 16, done.stdout
    ok(what)


required("RINGWAY_CONTROL")
with tempfile.TemporaryDirectory() as folder:
    # Found by its name beside the configuration.
    (Path(folder) / "api_schemathesis_checks.py").symlink_to(Path(__file__).with_name("api_schemathesis_checks.py"))
    schemathesis("errors by status", "transport", "", folder)
    schemathesis("errors in the body", "reply", "negative_data_rejection.enabled = false", folder)

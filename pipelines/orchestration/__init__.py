"""Running the stages: Prefect flows, dvc.yaml, diagnosis and capacity."""

import os

# Read when prefect is imported: its own limit is too short for a first start.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

"""Running the stages: Prefect flows, dvc.yaml, diagnosis and capacity."""

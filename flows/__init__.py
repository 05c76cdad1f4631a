"""What runs: one Prefect flow per file, wiring only."""

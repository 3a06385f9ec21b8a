"""Data set folders on disk: records, shards, manifests, cards and checkpoints."""

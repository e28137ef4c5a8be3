"""Guided sweeps: trials whose params Optuna suggests, each run as a DVC experiment. Optuna is an optional extra."""

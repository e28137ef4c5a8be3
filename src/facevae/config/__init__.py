"""params.yaml (its schema, its reader, the checks across keys) and the paths of the pipeline."""

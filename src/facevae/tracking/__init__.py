"""One MLflow run for each distinct state of the pipeline, and the way back from a run to that state.

A state is what Git and DVC record of it: params, code, data. Its fingerprint finds its run, so that no run id is handed
from stage to stage or left in an output, and what a run holds is read from the outputs on disk or in a commit: a stage
that DVC skips, a state from the run cache or from a colleague, and a lost database all end in the same run. No result
depends on this package, and nothing but stages and the command imports it; mlflow is imported by `store`, `record` and
`stage_run` alone.
"""

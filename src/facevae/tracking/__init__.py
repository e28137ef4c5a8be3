"""One MLflow run for each state of the pipeline, and the way back from a run to its state.

A state is what Git and DVC record: params, code and data. Its fingerprint identifies its run, so no run id is passed
between stages or stored in an output. The contents of a run are read from outputs on disk or in a commit. So skipped
stages, results from the run cache or from a colleague, and a lost database all lead to the same run.

No result depends on this package. Only stages and the command import it, and they import mlflow nowhere else. DVC is
never imported in a stage, whose start it would slow: only `where` and `mending` use it.
"""

"""Records: one folder per run, written atomically and found by fingerprint.

    outputs/<group>/<cell>-seed<k>-<fingerprint>/      group: a study's name, sweep-<hash>, or runs
        result.json       status, parameters, metrics, training, environment (see `new_result`)
        eval.parquet      window, bin (0-9), nll_sum, tokens, bytes, words  one row per window and position bin; older
                          records count no words
        thirds.parquet    window, third (0-2), nll_sum, tokens, bytes, words       the same by third: 1 is the middle
        half.parquet      as eval.parquet, after half of the optimizer steps; only for trained runs
        probe.parquet     one row per question, with the probe's own columns; only if a probe was asked: result.json
                          then has a section `probe` with its name, fingerprint, settings and numbers
        windows.parquet   window, document, first_token, length             where each window was cut; with sliding
                          windows also context, the first tokens that are read but not predicted
        audit.json        finding of each audit check (see `hylo.audit`); failed checks are also in result.json
        curve.jsonl       one line per optimizer step
        trajectory.jsonl  vectors over steps, by component; only if a component has vectors to track
        config.yaml       the resolved config
        adapter/          safetensors + JSON
        traceback.txt     only for failed runs
    outputs/<group>/study.json                          the cells in order, with their folders
    outputs/<group>/trials.parquet                      cell, setting, seed, window, nll_sum, tokens: the trials
                                                        behind chosen settings, on validation documents; only if the
                                                        study chose any
    outputs/tuning-of-<group>/tuning.json, trials.parquet           choices so far, and the sums behind them

`environment.overhead_seconds` is the wall time of the run without training and evaluation: loading, audit, checksums,
records and tracking.

The names in these files are a contract: reports, notebooks and other tools read them.
"""

SCHEMA_VERSION = 2
RUNNING, COMPLETE, FAILED, INTERRUPTED = "running", "complete", "failed", "interrupted"
RESULT, EVAL, THIRDS, WINDOWS = "result.json", "eval.parquet", "thirds.parquet", "windows.parquet"
HALF = "half.parquet"
AUDIT = "audit.json"
PROBE = "probe.parquet"
CONFIG, ADAPTER, TRACEBACK, STUDY = "config.yaml", "adapter", "traceback.txt", "study.json"
RECORDS = "records"
"""Folder of a published study's records (`hylo.publish`)."""
TRIALS, CHOICES = "trials.parquet", "tuning.json"
NOT_RUN = "not_run"
"""Key of a manifest: the cells of the study that are not part of it, because it was run (`cells=`) or published
(`--so-far`) without them."""

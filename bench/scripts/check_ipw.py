#!/usr/bin/env python3
"""Checks a folder of `leapfrog-bench ipw` (one strategy) against the rules of the reference harness.

Recomputes summary.json from records.jsonl; with `datasets` installed also saves and loads the rows, and with the harness
(`ipw`) installed runs its regression. What is not installed is skipped, and said so. Exits with 1 if anything differs.
"""

import json
import math
import sys
import tempfile
from pathlib import Path


def close(name, ours, theirs):
    same = (ours is None and theirs is None) or (
        None not in (ours, theirs) and math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)
    )
    print(f"{'ok  ' if same else 'DIFF'} {name}: ours {ours}, recomputed {theirs}")
    return same


def recompute(rows, summary):
    """Accuracy over mean energy, and over the mean of energy over latency, of the rows' basis."""
    metrics = [next(iter(row["model_metrics"].values())) for row in rows]
    scored = [m for m in metrics if m["evaluation"]["is_correct"] is not None]
    accuracy = sum(m["evaluation"]["is_correct"] for m in scored) / len(scored)
    rail = {"soc": "soc_per_query_joules", "gpu": "per_query_joules"}
    joules = [m["energy_metrics"][rail[m["energy_metrics"]["basis"] or "gpu"]] for m in metrics]
    good = [close("accuracy", summary["accuracy"]["value"], accuracy)]
    efficiency = summary["efficiency"]
    if None in joules:
        missing = sum(value is None for value in joules)
        print(f"     energy of {missing} of {len(joules)} rows is unknown, so IPW and IPJ must be")
        good += [close(key, efficiency[key], None) for key in ("intelligence_per_watt", "intelligence_per_joule")]
        return all(good)
    seconds = [m["latency_metrics"]["total_query_seconds"] for m in metrics]
    energy = sum(joules) / len(joules)
    power = sum(e / t for e, t in zip(joules, seconds)) / len(joules)
    good.append(close("mean_joules", summary["energy"]["mean_joules"], energy))
    good.append(close("mean_watts", summary["energy"]["mean_watts"], power))
    good.append(close("intelligence_per_watt", efficiency["intelligence_per_watt"], accuracy / power))
    good.append(close("intelligence_per_joule", efficiency["intelligence_per_joule"], accuracy / energy))
    return all(good)


def reload(rows, folder):
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        print("skipped: `datasets` is not installed")
        return True
    with tempfile.TemporaryDirectory() as place:
        Dataset.from_list(rows).save_to_disk(place)
        count = len(load_from_disk(place))
        print(f"{'ok  ' if count == len(rows) else 'DIFF'} rows after saving and loading: {count}")
        return regression(Path(place), folder) and count == len(rows)


def regression(place, folder):
    try:
        from ipw.analysis.base import AnalysisContext
        from ipw.analysis.regression import RegressionAnalysis
    except ImportError as error:
        print(f"skipped: the harness is not installed ({error})")
        return True
    result = RegressionAnalysis().run(AnalysisContext(results_dir=place))
    theirs = result.data["regressions"]
    ours = json.loads((folder / "analysis/regression.json").read_text())["data"]["regressions"]
    good = True
    # Its fits of energy and power look at the GPU alone.
    for name in ("input_tokens_vs_ttft", "total_tokens_vs_latency"):
        for key in ("count", "slope", "intercept", "r2", "avg_y"):
            good &= close(f"{name}.{key}", ours[name][key], theirs[name][key])
    return good


def main():
    folder = Path(sys.argv[1])
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    results = [recompute(rows, summary), reload(rows, folder)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

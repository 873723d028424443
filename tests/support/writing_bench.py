"""A small WritingBench in the public repository's layout, with what its own script makes of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.files import write_jsonl
from tests.support.paths import ROOT

PUBLIC = json.loads(
    (ROOT / "tests" / "unit" / "evaluation" / "data" / "writing_bench.json").read_text(encoding="utf-8")
)


def write_benchmark(root: Path, key: str = "checklist") -> Path:
    """The fixture's queries and subsets as the public repository lays them out."""

    def row(query, names=None):
        kept = [criterion for criterion in query["checklist"] if names is None or criterion["name"] in names]
        return {name: value for name, value in query.items() if name != "checklist"} | {key: kept}

    by_index = {query["index"]: query for query in PUBLIC["queries"]}
    folder = root / "benchmark_query"
    write_jsonl(folder / "benchmark_all.jsonl", [row(query) for query in PUBLIC["queries"]])
    for name, subset in PUBLIC["subsets"].items():
        target = folder / "requirement" / name
        write_jsonl(target / f"{name}_subset.jsonl", [row(by_index[i]) for i in subset["R"]])
        write_jsonl(target / f"{name}_subset_C.jsonl", [row(by_index[i], subset["C"][str(i)]) for i in subset["R"]])
    return root

"""The options of every verb of `gammalab`, without heavy imports: --help stays light."""

from __future__ import annotations

import argparse
from pathlib import Path

from real_backend.number_options import (
    count,
    number,
    positive,
    repeats,
    temperature,
    whole,
    workers,
)
from real_backend.options import Parser, add_acceptance_argument, add_pair_arguments, add_seed

requests = whole(1, 1_000_000, "a run keeps every request; results settle long before")
seeds = whole(1, 1000, "every seed is a run of every policy; intervals settle long before")


def add_study(study: Parser) -> None:
    add_pair_arguments(study)
    group = study.add_argument_group("the study")
    group.add_argument("--prompts", type=Path, help="JSON lines (embedded pair: its own)")
    group.add_argument("--trace", type=Path, help="use this trace instead of capturing one")
    group.add_argument("--out", type=Path, required=True, help="folder of all results")
    group.add_argument("--quick", action="store_true", help="fewer prompts and repeats, for a look")
    group.add_argument("--max-error", type=positive, default=8.0, metavar="PERCENT", help=MAX_ERROR)
    add_seed(group, "the split into halves and all draws")
    group.add_argument("--force", action="store_true", help="start over, overwriting results")


MAX_ERROR = "largest prediction error to accept, in percent"


def add_compare(compare: Parser) -> None:
    compare.add_argument(
        "--trace", type=Path, action="append", required=True, help="Parquet; may be given again"
    )
    compare.add_argument("--timing", type=Path, required=True, help="JSON of `gammalab measure`")
    compare.add_argument("--policies", help="e.g. gammatune,fixed:gamma=4 (default: the shelf)")
    compare.add_argument(
        "--out", type=Path, help="folder for compare.json, compare.txt and simulated rounds"
    )
    add_seed(compare, "the split into halves and all draws")
    compare.add_argument("--json", action="store_true", help="results as JSON on stdout")
    compare.add_argument("--force", action="store_true", help="overwrite")


def add_validate(validate: Parser) -> None:
    add_pair_arguments(validate)
    group = validate.add_argument_group("the confirmation")
    group.add_argument("--trace", type=Path, required=True, help="what was recorded of this pair")
    group.add_argument("--timing", type=Path, required=True, help="measured on this machine")
    group.add_argument("--prompts", type=Path, help="the trace's prompt file (embedded: its own)")
    group.add_argument(
        "--policies",
        help="default: never and nine more; the tuned fixed gamma and its placebo always sit",
    )
    group.add_argument("--out", type=Path, help="folder for validate.json and measured rounds")
    add_acceptance_argument(group)
    group.add_argument(
        "--measured",
        type=Path,
        metavar="DIR",
        help="judge the rounds in DIR (of an earlier --out, or of `python -m "
        "real_backend.decoding.sitting` on another machine) instead of running",
    )
    group.add_argument(
        "--repeats", type=repeats, default=1, help="times that the sitting goes round"
    )
    group.add_argument(
        "--limit",
        type=whole(0),
        default=0,
        help="about N held-out requests, all tasks alike, 0: all",
    )
    group.add_argument("--max-error", type=positive, default=8.0, metavar="PERCENT", help=MAX_ERROR)
    add_seed(group, "the split into halves, the order and all draws")
    group.add_argument("--json", action="store_true", help="results as JSON on stdout")
    group.add_argument("--force", action="store_true", help="overwrite")


def add_sweep(sweep: Parser) -> None:
    sweep.add_argument(
        "suite", help="leaderboard, cost-ratio, seeds, ablation, paper or quick (a look)"
    )
    sweep.add_argument(
        "--out", type=Path, required=True, help="folder; a stopped sweep goes on there"
    )
    sweep.add_argument(
        "--trace", type=Path, action="append", help="instead of the suite's; may be given again"
    )
    sweep.add_argument("--timing", type=Path, help="JSON of `gammalab measure`, for --trace")
    sweep.add_argument("--cost", help="measured, or ratios: c=4,c=8 (default: the suite's)")
    sweep.add_argument("--policies", help="instead of the suite's; bare names are searched")
    sweep.add_argument("--search", help="grid, random or optuna (default: the suite's)")
    most = whole(1, 100_000, "every setting is replayed twice and kept as a row")
    sweep.add_argument("--trials", type=most, help="settings per policy (default: the suite's)")
    add_seed(sweep, "split and search", default=None)
    where = sweep.add_mutually_exclusive_group()
    where.add_argument("--workers", type=workers(), default=1, help="local processes")
    where.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster, or 'local'")
    sweep.add_argument("--json", action="store_true", help="the best settings as JSON on stdout")
    sweep.add_argument("--force", action="store_true", help="another sweep into the same folder")


def add_train(train: Parser) -> None:
    train.add_argument(
        "--trace", type=Path, action="append", required=True, help="Parquet; may be given again"
    )
    train.add_argument("--timing", type=Path, required=True, help="JSON of `gammalab measure`")
    train.add_argument("--out", type=Path, required=True, help="policy file, NAME.json")
    train.add_argument("--algo", default="ppo", help="ppo (ours), clone, sb3-ppo or sb3-dqn")
    train.add_argument("--unit", default="token", help="decide per token or round")
    train.add_argument(
        "--cost-ratios", help="e.g. 0,4,8,16; 0: the measured costs (default: those alone)"
    )
    train.add_argument("--iterations", type=count, default=800, help="iterations of ppo")
    most = whole(1, 65_536, "beyond, memory grows and nothing gets faster")
    train.add_argument("--lanes", type=most, default=256, help="environments of ppo")
    train.add_argument("--hidden", type=count, default=32, help="numbers in a layer")
    train.add_argument(
        "--rate",
        type=number(0.0, 1.0, "weights would only diverge"),
        default=1e-3,
        help="learning rate, a number",
    )
    train.add_argument(
        "--warm-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ppo: clone the clairvoyant schedule first (default: yes)",
    )
    add_seed(train, "everything drawn")
    add_seed(train, "the halves, as in compare", "--split-seed")
    train.add_argument("--json", action="store_true", help="the curve as JSON on stdout")
    train.add_argument("--force", action="store_true", help="train anew, overwriting")


def add_serve(served: Parser) -> None:
    served.add_argument("--trace", type=Path, required=True, help="a recording of the pair")
    served.add_argument(
        "--timing",
        required=True,
        help="JSON of `gammalab measure --batch 1,2,4,8`, or roofline:h100:TARGET+DRAFT",
    )
    served.add_argument(
        "--workload",
        required=True,
        help="poisson:rate=4, gamma:rate=4,cv=2, bursts:on=8,off=1,on_s=10,off_s=30, "
        "closed:users=8,think_s=0.5, or a JSON file",
    )
    served.add_argument("--requests", type=requests, default=2000, help="how many requests")
    served.add_argument("--policies", help="the first is what ratios refer to (default: never ...)")
    served.add_argument(
        "--server", default="", help="slots=8,blocks=0,chunk_tokens=0,allotment=each,..."
    )
    served.add_argument("--slo", default="", help="ttft_s=0.5,tpot_s=0.05")
    served.add_argument("--seeds", type=seeds, default=3, help="runs per policy")
    add_seed(served, "the first run")
    served.add_argument(
        "--warmup",
        type=number(0.0, 0.99, above=False),
        default=0.1,
        help="share of requests left out",
    )
    served.add_argument("--out", type=Path, help="folder for serve.json and request logs")
    served.add_argument(
        "--timeline", action="store_true", help="rounds and a Perfetto timeline of 300 requests"
    )
    served.add_argument("--json", action="store_true", help="results as JSON on stdout")
    served.add_argument("--force", action="store_true", help="overwrite")


def add_fleet(fleet: Parser) -> None:
    fleet.add_argument("question", help="table, break-even, bursts, capacity or placement")
    fleet.add_argument("--trace", type=Path, required=True, help="a recording of the pair")
    fleet.add_argument("--timing", required=True, help="as for `gammalab serve`")
    fleet.add_argument("--policies", help="beside plain decoding and fixed lengths")
    fleet.add_argument("--server", default="", help="as for `gammalab serve`")
    fleet.add_argument("--slo", default="", help="ttft_s=0.5,tpot_s=0.05 (default: from the costs)")
    fleet.add_argument("--requests", type=requests, default=1000, help="requests per run")
    fleet.add_argument("--seeds", type=seeds, default=4, help="runs per policy")
    add_seed(fleet, "the first run")
    fleet.add_argument("--out", type=Path, help="folder for fleet.json, table and figures")
    fleet.add_argument("--json", action="store_true", help="results as JSON on stdout")
    fleet.add_argument("--force", action="store_true", help="overwrite")


def add_export(export: Parser) -> None:
    export.add_argument("policy", help="e.g. gammatune or fixed:gamma=4")
    export.add_argument("--to", required=True, help="vllm, sglang, trtllm, llama.cpp or hf")
    export.add_argument("--trace", type=Path, required=True, help="a recording of the pair")
    export.add_argument("--timing", type=Path, required=True, help="JSON of `gammalab measure`")
    export.add_argument("--out", type=Path, help="write there instead of to stdout")
    add_seed(export, "the split into halves")
    export.add_argument("--json", action="store_true", help="as JSON")
    export.add_argument("--force", action="store_true", help="overwrite")


def add_published(published: Parser) -> None:
    published.add_argument("name", help="spec-bench, specforge, microbenchmarks or iid (a control)")
    published.add_argument(
        "--data", type=Path, nargs="+", required=True, help="your copy of the published data"
    )
    published.add_argument("--vanilla", type=Path, help="spec-bench: the run without a draft")
    published.add_argument("--timing", type=Path, help="iid: JSON of `gammalab measure`")
    published.add_argument("--out", type=Path, help="write the results there as JSON, too")
    published.add_argument("--json", action="store_true", help="results as JSON on stdout")
    published.add_argument("--force", action="store_true", help="overwrite")


def add_import(imported: Parser) -> None:
    imported.add_argument(
        "input", type=Path, nargs="+", help="spec-bench: further runs of the same questions as well"
    )
    imported.add_argument(
        "--format", required=True, help="spec-bench, acc-len, jsonl, vllm, sglang or llama.cpp"
    )
    imported.add_argument("--out", type=Path, required=True, help="the trace, Parquet")
    imported.add_argument(
        "--schedule",
        default="",
        help="spec-bench: how gamma was set, heuristic:5 or fixed:5; one per file with commas",
    )
    imported.add_argument("--key", default="", help="acc-len: the object to read, a dotted path")
    imported.add_argument("--vanilla", type=Path, help="spec-bench: the run without a draft")
    imported.add_argument("--timing-out", type=Path, help="spec-bench: fit a timing to wall times")
    imported.add_argument(
        "--depth", type=count, default=0, help="deepest draft of a replay, in tokens"
    )
    imported.add_argument(
        "--temperature", type=temperature, default=0.0, help="of the recorded run, 0 is greedy"
    )
    imported.add_argument(
        "--max-new-tokens", type=count, default=0, help="its reply limit, in tokens"
    )
    imported.add_argument("--strict", action="store_true", help="mend and leave out nothing")
    imported.add_argument("--force", action="store_true", help="overwrite")

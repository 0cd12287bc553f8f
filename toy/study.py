"""Does the paper's story hold on the toy? `python toy/study.py` runs it, `--report` tells it.

    nohup python toy/study.py &        # about five hours on two cores; started again it goes on
    python toy/study.py --quick        # 15 minutes: fewer seeds, a smaller budget, no sweeps
    python toy/study.py --report       # tables in Markdown and figures, from toy/study/runs.jsonl

Every run starts from the same base and questions and may draw the same number of answers, so that
algorithms that drop unmixed questions pay for what they draw; all but the swept settings are
nft.py's defaults. Learning rates: one grid for all, chosen for each algorithm (and model) by avg on
test.jsonl over TUNING seeds, which are not used again. Then SEEDS, each the same for all: a seed
fixes the questions' order and the numbers that answers are drawn with, so differences are paired by
seed. SWEEPS change one setting of one algorithm; CONDITIONS are where NFT and RFT, which do not
part at the defaults, might. Final models answer each question of test.jsonl, and of hard.jsonl (5
operations, training has 2 to 4), N times; pass@k is the unbiased estimate from these. Intervals are
Student's, 95% over seeds (of 8 numbers a percentile bootstrap holds the mean in 88 of 100 cases
only), not corrected for the number of comparisons.

What equal draws mean: an algorithm that drops unmixed questions takes about half the optimiser
steps of GRPO and Dr. GRPO on the same budget, so NFT against DAPO compares losses, NFT against GRPO
whole recipes. The last iteration may overdraw, here by up to 900 answers (1600 where questions are
few).
"""
import argparse
import functools
import json
import os
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

TOY = Path(__file__).resolve().parent
sys.path[:0] = [str(TOY.parent), str(TOY)]
import make  # noqa: E402
import nft  # noqa: E402

ALGORITHMS = {
    "NFT": dict(algo="nft"), "RFT": dict(algo="rft"),
    "RFT, 1 - r_hat": dict(algo="rft", omega="dr_grpo"), "GRPO": dict(algo="grpo"),
    "Dr. GRPO": dict(algo="dr_grpo"), "DAPO": dict(algo="dapo")}
MODELS = {"0.8M": "base", "0.2M": "small"}
GRID = [3e-5, 1e-4, 3e-4, 1e-3]
TUNING, SEEDS = [100, 101], list(range(8))
BUDGET = 16_000  # answers drawn
N = 32  # answers to a question of the final evaluation (16 in sweeps)
SWEEPS = {  # figure (SETTING[ of ALGORITHM]) -> algorithm, label -> flags over the algorithm's
    "eps": ("NFT", {str(eps): dict(eps=eps) for eps in (0.01, 0.1, 0.5)}),
    "omega": ("NFT", {omega: dict(omega=omega) for omega in ("one", "grpo")}),
    "neg_weight": ("NFT", {str(w): dict(neg_weight=w) for w in (0.0, 0.25, 0.5, 2.0)}),
    "K": ("NFT", {"4": dict(K=4, questions=64), "16": dict(K=16, questions=16)}),
    "minibatches": ("NFT", {str(n): dict(minibatches=n) for n in (1, 16)}),
    "minibatches of RFT": ("RFT", {str(n): dict(minibatches=n) for n in (1, 16)}),
    "minibatches of GRPO": ("GRPO", {str(n): dict(minibatches=n) for n in (1, 16)}),
    "minibatches of DAPO": ("DAPO", {str(n): dict(minibatches=n) for n in (1, 16)})}
SWEPT = "0.2M"  # the model of the sweeps, the cheaper one
HARD = TOY.parent / "runs/study-hard.jsonl"  # these files are written by write_questions
FEW = {n: TOY.parent / f"runs/study-{n}.jsonl" for n in (64, 16)}
CONDITIONS = {  # where NFT and RFT might part, of the model SWEPT: label -> flags, draws, seeds
    **{f"trained on {n} questions": dict(train=str(path)) for n, path in FEW.items()},
    "lr 0.0003": dict(lr=3e-4), "64000 draws": dict(budget=64_000, seeds=5),
    "trained on 5 operations": dict(train=str(HARD), max_prompt=128, max_new=96, seeds=4),
    "K 4": SWEEPS["K"][1]["4"] | dict(seeds=4), "K 16": SWEEPS["K"][1]["16"] | dict(seeds=4),
    "minibatches 1": dict(minibatches=1), "minibatches 16": dict(minibatches=16)}
MIDDLE = {"eps": "1.0", "omega": "dr_grpo", "neg_weight": "1.0", "K": "8"}  # nft.py's defaults

# ---------------------------------------------------------------- running
def count_right(model, tokenizer, cfg, name: str, n: int, longest: int) -> list[int]:
    """How many of n answers to each question of toy/NAME.jsonl are right."""
    questions = nft.load_questions(f"{TOY}/{name}.jsonl", tokenizer, replace(cfg, max_prompt=128))
    rows = nft.rollout(model, tokenizer, questions, range(len(questions)), n,
                       replace(cfg, max_new=longest, sample_rows=2048), seed=2 * cfg.seed + 1)
    return [round(sum(row.r for row in rows[at:at + n])) for at in range(0, len(rows), n)]

def run(key: str, model: str, flags: dict, seed: int, budget: int, n: int) -> dict:
    """One training and its evaluation: what becomes a line of runs.jsonl."""
    torch.set_num_threads(1)
    flags = {"train": f"{TOY}/train.jsonl"} | flags
    cfg = nft.Config(model=f"{TOY}/{MODELS[model]}", seed=seed, **flags)
    model, tokenizer = nft.load_model(cfg)
    data = nft.load_questions(cfg.train, tokenizer, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, weight_decay=cfg.weight_decay)
    curves, drawn, checks = [], 0, {}
    stopped = ""
    while drawn * cfg.K < budget:
        if len(checks) <= 6 * drawn * cfg.K / budget:  # six looks along the way
            right = count_right(model, tokenizer, cfg, "test", 4, cfg.max_new)
            checks[drawn * cfg.K] = round(float(np.mean(right)) / 4, 4)
        try:
            rows, metrics = nft.collect(model, tokenizer, data, cfg, drawn)
            metrics |= nft.update(model, optimizer, rows, cfg, len(tokenizer))
        except nft.RunError as error:  # nothing to learn from: the model has collapsed
            stopped = str(error)
            break
        drawn = metrics["drawn"]
        curves.append([drawn * cfg.K, *(round(float(metrics[name]), 4) for name in CURVES)])
    return dict(key=key, seed=seed, lr=cfg.lr, torch=torch.__version__, cores=os.cpu_count(),
                stopped=stopped, curves=curves, checks=list(checks.items()), n=n,
                test=count_right(model, tokenizer, cfg, "test", n, cfg.max_new),
                hard=count_right(model, tokenizer, cfg, "hard", n, 96))

CURVES = ["acc", "entropy", "length", "kept_frac", "R_max", "grad_norm"]

def chosen(runs: dict, model: str, algorithm: str) -> float:
    """The learning rate with the best mean avg on test.jsonl over the TUNING seeds."""
    def score(lr):
        return np.mean([avg(runs[tuning_key(model, algorithm, lr), seed], "test")
                        for seed in TUNING])
    return max(GRID, key=score)

def tuning_key(model: str, algorithm: str, lr: float) -> str:
    return f"{model}|{algorithm}|tuning {lr:g}"

def swept_key(name: str, setting: str) -> str:
    """Of a sweep's value ("eps 0.1") or a condition ("K 4"): a run of both is one run."""
    return f"{SWEPT}|{name}|{setting}"

def write_questions() -> None:
    """To train on in CONDITIONS: 2400 of 5 operations, none of hard.jsonl; the first usual ones."""
    held_out = [json.loads(row)["question"] for row in (TOY / "hard.jsonl").open()]
    taken = {re.sub(r"^(Find|What is) |(=?\?|\.)$", "", question) for question in held_out}
    HARD.parent.mkdir(exist_ok=True)
    make.write_questions(HARD, random.Random(1), 2400, [5], taken, longest=96)
    usual = (TOY / "train.jsonl").read_text().splitlines(True)
    for n, path in FEW.items():
        path.write_text("".join(usual[:n]))

def stages(runs: dict, quick: bool):
    """Lists of runs (key, model, flags, seed, budget, n); a stage needs those before it."""
    models, budget = (["0.8M"], BUDGET // 4) if quick else (list(MODELS), BUDGET)
    seeds, tuning = (SEEDS[:2], TUNING[:1]) if quick else (SEEDS, TUNING)
    yield [(f"{model}|base", model, {}, 0, 0, N) for model in models]
    if not quick:
        yield [(tuning_key(model, name, lr), model, flags | {"lr": lr}, seed, budget // 2, 8)
               for model in models for name, flags in ALGORITHMS.items() for lr in GRID
               for seed in tuning]
    def at_best(model, name):
        lr = nft.Config().lr if quick else chosen(runs, model, name)
        return ALGORITHMS[name] | {"lr": lr}
    yield [(f"{model}|{name}", model, at_best(model, name), seed, budget, N)
           for model in models for seed in seeds for name in ALGORITHMS]
    if not quick:
        yield [(swept_key(name, f"{what.split()[0]} {label}"), SWEPT, at_best(SWEPT, name) | flags,
                seed, budget, 16) for seed in SEEDS for what, (name, values) in SWEEPS.items()
               for label, flags in values.items()]
        for label, condition in CONDITIONS.items():
            flags = condition.copy()
            draws, seeds = flags.pop("budget", budget), flags.pop("seeds", len(SEEDS))
            yield [(swept_key(name, label), SWEPT, at_best(SWEPT, name) | flags, seed, draws, 16)
                   for seed in SEEDS[:seeds] for name in ("NFT", "RFT")]

def load(path: Path) -> dict:
    """Runs by (key, seed); a line that a kill has cut is dropped."""
    lines = path.read_text().splitlines(True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {(row["key"], row["seed"]): row for row in rows}

def study(path: Path, quick: bool, workers: int) -> None:
    """Run what path does not hold yet, a line a finished run."""
    transformers.utils.logging.disable_progress_bar()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_questions()
    runs = load(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in runs.values()))
    with ProcessPoolExecutor(workers) as pool:
        for stage in stages(runs, quick):
            missing = [job for job in stage if (job[0], job[3]) not in runs]
            print(f"{len(stage)} runs, {len(missing)} to do", flush=True)
            for done in as_completed([pool.submit(run, *job) for job in missing]):
                row = done.result()
                runs[row["key"], row["seed"]] = row
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                score = f"seed {row['seed']}: {avg(row, 'test'):.3f}"
                print(time.strftime("%X"), row["key"], score, flush=True)

# ---------------------------------------------------------------- statistics
def avg(row: dict, split: str) -> float:
    return np.mean(row[split]) / row["n"]

def pass_at(row: dict, split: str, k: int) -> float:
    """The unbiased estimate: 1 - C(n - c, k) / C(n, k), a mean over questions."""
    n, c = row["n"], np.array(row[split])
    miss = np.prod([np.clip(n - c - i, 0, None) / (n - i) for i in range(k)], axis=0)
    return 1 - miss.mean()

@functools.cache
def student(n: int) -> float:
    """The 97.5% point of Student's t of n numbers."""
    return np.quantile(np.random.default_rng(0).standard_t(n - 1, 4_000_000), 0.975)

def interval(values) -> tuple[float, float, float]:
    """Mean and 95% interval."""
    mean, n = np.mean(values), len(values)
    half = student(n) * np.std(values, ddof=1) / n ** 0.5 if n > 1 else np.nan
    return mean, mean - half, mean + half

MEASURES = {
    "avg, test": lambda row: avg(row, "test"),
    "pass@16, test": lambda row: pass_at(row, "test", 16),
    "avg, hard": lambda row: avg(row, "hard"),
    "pass@16, hard": lambda row: pass_at(row, "hard", 16),
    "entropy": lambda row: np.mean([point[2] for point in row["curves"][-5:]])}

SCORES = [name for name in MEASURES if name != "entropy"]

class Results:
    """The runs of a log by key, each a list over the same seeds."""

    def __init__(self, path: Path):
        self.runs = load(path)

    def of(self, key: str, seeds=SEEDS) -> list[dict]:
        return [self.runs[key, seed] for seed in seeds if (key, seed) in self.runs]

    def values(self, key: str, measure: str, seeds=SEEDS) -> np.ndarray:
        return np.array([MEASURES[measure](row) for row in self.of(key, seeds)])

    def gap(self, key: str, other: str, measure: str) -> tuple[float, float, float]:
        """key - other, paired by seed."""
        shared = [s for s in SEEDS if (key, s) in self.runs and (other, s) in self.runs]
        return interval(self.values(key, measure, shared) - self.values(other, measure, shared))

    def swept(self, what: str) -> dict[str, str]:
        """label -> key, the default among them, in order."""
        name, values = SWEEPS[what]
        keys = {label: swept_key(name, f"{what.split()[0]} {label}") for label in values}
        keys[MIDDLE.get(what, "4")] = f"{SWEPT}|{name}"
        order = ["one", "dr_grpo", "grpo"]
        return dict(sorted(keys.items(), key=lambda item: order.index(item[0])
                           if item[0] in order else float(item[0])))

# ---------------------------------------------------------------- report
def percent(mean, low, high, signed=False) -> str:
    sign = "+" if signed else ""
    if np.isnan(low):
        return f"{100 * mean:{sign}.1f}"
    return f"{100 * mean:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"

def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"

def main_table(results: Results, model: str) -> str:
    def line(key, name):
        cells = [percent(*interval(results.values(key, m))) for m in SCORES]
        runs = results.of(key)
        if not runs[0]["curves"]:  # the base, which is one model
            return [name, 1, "", 0, *cells, ""]
        iterations = round(np.mean([len(row["curves"]) for row in runs]))
        entropy = "{:.3f} ({:.3f} to {:.3f})".format(*interval(results.values(key, "entropy")))
        return [name, len(runs), f"{runs[0]['lr']:g}", iterations, *cells, entropy]
    rows = [line(f"{model}|base", "base")]
    rows += [line(f"{model}|{name}", name) for name in ALGORITHMS if results.of(f"{model}|{name}")]
    return markdown([model, "seeds", "lr", "iterations", *SCORES, "entropy at the end"], rows)

def sweep_table(results: Results) -> str:
    rows = []
    for what in SWEEPS:
        for label, key in results.swept(what).items():
            if results.of(key):
                rows.append([what, label, *(percent(*interval(results.values(key, m)))
                             for m in ("avg, test", "avg, hard", "pass@16, hard")),
                             f"{interval(results.values(key, 'entropy'))[0]:.3f}"])
    return markdown(["swept", "value", "avg, test", "avg, hard", "pass@16, hard", "entropy"], rows)

def gap_table(results: Results) -> str:
    """Differences that the paper's claims are about, paired by seed."""
    pairs = [(f"{model}|{a}", f"{model}|{b}") for model in MODELS for a, b in (
        ("NFT", "RFT"), ("NFT", "RFT, 1 - r_hat"), ("RFT, 1 - r_hat", "RFT"), ("NFT", "GRPO"),
        ("NFT", "Dr. GRPO"), ("NFT", "DAPO"))]
    pairs += [(key, f"{SWEPT}|{SWEEPS[what][0]}") for what in SWEEPS
              for key in results.swept(what).values() if key.count("|") > 1]
    pairs += [(swept_key("NFT", f"minibatches {n}"), swept_key(name, f"minibatches {n}"))
              for name in ("GRPO", "DAPO") for n in (1, 16)]
    rows = []
    for a, b in pairs:
        if results.of(a) and results.of(b):
            name = f"{a} minus {b.split('|', 1)[1]}".replace("|", ": ")
            gaps = [results.gap(a, b, measure) for measure in SCORES]
            rows.append([name, *(percent(*gap, signed=True) for gap in gaps)])
    return markdown(["difference, points", *SCORES], rows)

def condition_table(results: Results) -> str:
    """NFT minus RFT, paired by seed, as it is and where they might part."""
    cases = {f"{model}, as above": [f"{model}|NFT", f"{model}|RFT"] for model in MODELS}
    cases |= {f"{SWEPT}, {label}": [swept_key(name, label) for name in ("NFT", "RFT")]
              for label in CONDITIONS}
    rows = []
    for case, (nft_key, rft_key) in cases.items():
        if results.of(nft_key) and results.of(rft_key):
            level = 100 * results.values(rft_key, "avg, test").mean()
            gaps = [percent(*results.gap(nft_key, rft_key, m), signed=True) for m in SCORES]
            entropies = [results.values(key, "entropy").mean() for key in (nft_key, rft_key)]
            both = min(len(results.of(nft_key)), len(results.of(rft_key)))
            rows.append([case, both, f"{level:.1f}", *gaps,
                         "{:.3f}, {:.3f}".format(*entropies)])
    return markdown(["NFT minus RFT, points", "seeds", "RFT: avg, test", *SCORES,
                     "entropy of NFT, RFT"], rows)

def band(axis, x, rows, label, **style) -> None:
    """Mean over rows, and the band of its 95% interval."""
    mean, low, high = zip(*(interval(column) for column in np.transpose(rows)))
    line, = axis.plot(x, mean, label=label, **style)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)

def figure_algorithms(results: Results, model: str, path: Path) -> None:
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 4, figsize=(17, 4), layout="constrained")
    ks = [1, 2, 4, 8, 16, 32]
    for name in ALGORITHMS:
        rows = results.of(f"{model}|{name}")
        if rows:
            looks = range(min(len(row["checks"]) for row in rows))
            x = [np.mean([row["checks"][i][0] for row in rows]) for i in looks]
            x.append(np.mean([row["curves"][-1][0] for row in rows]))
            band(axes[0], x, [[row["checks"][i][1] for i in looks] + [avg(row, "test")]
                              for row in rows], name)
            grid = np.linspace(500, min(row["curves"][-1][0] for row in rows), 40)
            band(axes[1], grid, [np.interp(grid, *np.transpose(row["curves"])[[0, 2]])
                                 for row in rows], name)
            for axis, split in zip(axes[2:], ("test", "hard")):
                band(axis, ks, [[pass_at(row, split, k) for k in ks] for row in rows], name)
    for axis, split in zip(axes[2:], ("test", "hard")):
        start = results.of(f"{model}|base")[0]
        axis.plot(ks, [pass_at(start, split, k) for k in ks], "k--", label="base")
        axis.set(title=f"pass@k, {split}", xlabel="k", xscale="log", xticks=ks, xticklabels=ks)
    floor = min(row["checks"][1][1] for name in ALGORITHMS for row in results.of(f"{model}|{name}"))
    axes[0].set(title="avg on test, from the second look on", xlabel="answers drawn",
                ylim=(floor - 0.01, None))
    axes[1].set(title="entropy, nats a token", xlabel="answers drawn", yscale="log")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    seeds = max(len(results.of(f"{model}|{name}")) for name in ALGORITHMS)
    figure.suptitle(f"{model} parameters: mean over {seeds} seeds with its 95% interval")
    figure.savefig(path, dpi=80)

def figure_sweeps(results: Results, path: Path) -> None:
    from matplotlib import pyplot
    measures = ("avg, test", "avg, hard", "entropy")
    figure, axes = pyplot.subplots(len(measures), len(SWEEPS), figsize=(18, 8),
                                   layout="constrained", sharey="row")
    for column, what in zip(axes.T, SWEEPS):
        keys = {label: key for label, key in results.swept(what).items() if results.of(key)}
        for axis, measure in zip(column, measures):
            mean, low, high = np.transpose([interval(results.values(key, measure))
                                            for key in keys.values()])
            axis.errorbar(range(len(keys)), mean, [mean - low, high - mean], fmt="o-", capsize=3)
            axis.set_xticks(range(len(keys)), list(keys))
            axis.grid(alpha=0.3)
        column[0].set_title(what)
    for axis, measure in zip(axes[:, 0], measures):
        axis.set_ylabel(measure)
    figure.savefig(path, dpi=80)

def report_real(folder: Path) -> None:
    """Table and figure of the runs of nft.py in folder/RUN, on a real model. The interval of
    pass@16 is the bootstrap's over questions, as avg's: of a share that is a binomial's."""
    import pandas as pd
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 4, figsize=(17, 3.5), layout="constrained")
    rows = []
    for run in sorted(folder.glob("*/")):
        evals = pd.read_json(run / "eval.jsonl", lines=True)
        metrics = pd.read_json(run / "metrics.jsonl", lines=True)
        spread = [evals.avg - evals.low, evals.high - evals.avg]
        axes[0].errorbar(evals.iteration, evals.avg, spread, fmt="o-", capsize=3, label=run.name)
        axes[1].plot(evals.iteration, evals["pass"], "o-")
        axes[2].plot(metrics.iteration, metrics.acc)
        axes[3].plot(metrics.iteration, metrics.entropy)
        for _, e in evals.iterrows():
            draws = np.random.default_rng(0).binomial(e.n, e["pass"], 100_000) / e.n
            rows.append([run.name, len(metrics), e.iteration, percent(e.avg, e.low, e.high),
                         percent(e["pass"], *np.quantile(draws, [0.025, 0.975])),
                         f"{metrics.entropy[max(0, e.iteration - 1)]:.3f}"])
    titles = ["avg@16, held-out", "pass@16, held-out", "accuracy in training", "entropy"]
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(folder / "real.png", dpi=80)
    print(markdown(["run", "iterations", "after", "avg@16", "pass@16", "entropy"], rows))

def report(path: Path) -> None:
    """Print the tables, draw the figures beside the log."""
    results = Results(path)
    for model in MODELS:
        if results.of(f"{model}|NFT"):
            print(main_table(results, model))
            figure_algorithms(results, model, path.with_name(f"algorithms-{model}.png"))
    print(gap_table(results))
    print(condition_table(results))
    if any(results.of(key) for key in results.swept("eps").values() if "eps" in key):
        print(sweep_table(results))
        figure_sweeps(results, path.with_name("sweeps.png"))

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15 minutes, in runs/study-quick")
    parser.add_argument("--report", action="store_true", help="tables and figures of what is there")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    args = parser.parse_args()
    folder = TOY.parent / "runs/study-quick" if args.quick else TOY / "study"
    if not args.report:
        study(folder / "runs.jsonl", args.quick, args.workers)
    report(folder / "runs.jsonl")
    if not args.quick:
        report_real(TOY / "real")

if __name__ == "__main__":
    main()

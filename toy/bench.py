"""Speed and memory beside the peers: `python toy/bench.py` prints a table, and writes it as JSON.

A ratio is the peer's cost over nft.py's: above 1, nft.py is cheaper. The two run in turn, three
times after a warm-up that is not counted; the table has the median of the pairs' ratios and their
range. One thread on a CPU. A peer that is not installed is skipped with a line; for all of them:
    pip install trl==1.16.0 "math-verify[antlr4_13_2]"      # for the benchmark only

sampler  nft.sample against Hugging Face's generate, tokens a second: toy/base, and a "mid" model of
         random weights (hidden 512, 8 layers, V 32k). live: answers end by EOS (mid: each token is
         one with chance 1/30); full: all answers run to max_new
train    a whole step (sample, grade, loss, AdamW) against TRL's GRPOTrainer: the same model,
         questions, K, max_new, verifier; learning rate 0, so that lengths stay. And nft.update
         (loss, AdamW) against one batch padded to its longest row, with mask and all logits
logps    log-probs of an answer, forward and backward: hidden 1024, V 32k and 152k, fp32 and bf16
         autocast; time at 512 tokens; peak memory at 4096 in a fresh process, less the model
grade    verify.grade against Math-Verify: answers a second, errors by the labels of
         ../shared/data/graded_math.jsonl where it is there, seconds on hostile answers
sizes    seconds and peak memory of a step against length of answers, K, width and vocabulary:
         toy/bench.png, with the exponent of growth over the last doubling
gpu      with --device cuda: shapes of Qwen2.5, random weights. Decoding against the bound of memory
         bandwidth, (weights + keys and values) / bandwidth a step; an update of 4096 tokens against
         the peak of bf16 (the ratio is the MFU), at 8 flops a weight and token: 2 to score with
         pi_old, 6 to train; recomputed activations are not counted as work. The phases of an
         iteration on 256 answers. --tiny tries the same code on a CPU
batch    nft.sample against transformers' continuous batching, generate_batch: the toy as in
         `sampler`, or with --device cuda the shape of 1.5B as in `gpu`, its weights in bf16
"""
import argparse
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

TOY = Path(__file__).resolve().parent
sys.path.insert(0, str(TOY.parent))
import nft  # noqa: E402
import verify  # noqa: E402

GRADED = TOY.parent.parent / "shared/data/graded_math.jsonl"
NEVER = [10**6]  # an EOS that no model has
CAP = 10  # seconds a peer gets for a hostile answer

# ---------------------------------------------------------------- measuring
def seconds(run, device: str = "cpu") -> float:
    """Time of run(), or, where it returns an int, time per one (a token, an answer)."""
    sync = torch.cuda.synchronize if device == "cuda" else int
    sync()
    began = time.perf_counter()
    n = run()
    sync()
    return (time.perf_counter() - began) / (n if type(n) is int else 1)

def in_turn(runs: dict, pairs: int, device: str = "cpu") -> dict[str, list[float]]:
    """Costs of each of `runs`, which take turns; a first round warms up and is not counted."""
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(pairs + 1)]
    return {name: [costs[name] for costs in rounds[1:]] for name in runs}

def line(row: dict) -> str:
    """A row of the table in Markdown."""
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]) if row["ratio"] else ""
    cells = [row[name] for name in ("part", "case", "peer", "ours", "theirs", "unit")] + [ratio]
    cells = [f"{x:.{0 if x > 999 else 3}{'f' if x > 999 else 'g'}}" if isinstance(x, float) else x
             for x in cells]
    return f"| {' | '.join('' if x is None else str(x) for x in cells)} |"

def entry(part, case, ours, theirs=None, unit="", peer="", ratio=None) -> dict:
    """A row of the table, printed as it comes; ratio: median, least, largest."""
    row = dict(part=part, case=case, peer=peer, ours=ours, theirs=theirs, unit=unit, ratio=ratio)
    print(line(row), flush=True)
    return row

def compare(part: str, case: str, costs: dict[str, list[float]], unit: str) -> list[dict]:
    """Rows for "nft.py" of `costs` against each other name. Of "x/s", costs are seconds an x."""
    shown = {name: median(values) for name, values in costs.items()}
    if unit.endswith("/s"):
        shown = {name: 1 / cost for name, cost in shown.items()}
    ratios = {name: [theirs / ours for ours, theirs in zip(costs["nft.py"], costs[name])]
              for name in costs if name != "nft.py"}
    return [entry(part, case, shown["nft.py"], shown[peer], unit, peer, [median(r), min(r), max(r)])
            for peer, r in ratios.items()]

def probe(what: str, timeout: float | None = None, **how) -> dict:
    """PROBES[what](**how) in a fresh process, where the peak of memory is its own."""
    done = subprocess.run([sys.executable, __file__, "--probe"], input=json.dumps([what, how]),
                          stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    return json.loads(done.stdout.splitlines()[-1])

def memory(peak: bool, device: str = "cpu") -> float:
    """MiB, now or at most: of the process so far, or of tensors on the GPU since the last call."""
    if device == "cuda":
        most = (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)()
        torch.cuda.reset_peak_memory_stats()
        return most / 2**20
    name = "VmHWM" if peak else "VmRSS"
    return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def installed(package: str) -> bool:
    if find_spec(package) is None:
        print(f"{package} is not installed: what compares with it is skipped", flush=True)
    return find_spec(package) is not None

# ---------------------------------------------------------------- models and answers
def qwen(device: str = "cpu", **shape):
    """A Qwen2 of this shape and random weights."""
    torch.manual_seed(0)
    shape = dict(num_attention_heads=8, num_key_value_heads=8) | shape
    shape.setdefault("intermediate_size", 4 * shape["hidden_size"])
    with torch.device(device):
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape)).eval()

def mid():
    return qwen(vocab_size=32000, hidden_size=512, num_hidden_layers=8)

def toy():
    """The toy's settings, model, tokenizer and 32 questions; one step a round, at rate 0."""
    cfg = nft.Config(model=str(TOY / "base"), train=str(TOY / "train.jsonl"), algo="dr_grpo",
                     minibatches=1, lr=0.0)
    model, tokenizer = nft.load_model(cfg)
    return cfg, model, tokenizer, nft.load_questions(cfg.train, tokenizer, cfg)[:32]

def random_answers(lengths: list[int], vocab: int, K: int) -> list:
    """Rows to train on: answers of random tokens, K to a question of 16, half of them right."""
    draw = partial(random.Random(0).choices, range(vocab))
    questions = [nft.Question("", "", draw(k=16)) for _ in range(math.ceil(len(lengths) / K))]
    return [nft.Row(q=questions[i // K], a=nft.Answer(draw(k=n), [-5.0] * n, True),
                    r=float(i % 2), r_hat=0.5, text="") for i, n in enumerate(lengths)]

def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.0)

def update(model, rows: list, cfg, optimizer) -> int:
    nft.update(model, optimizer, rows, cfg, model.config.vocab_size)
    return sum(len(row.a.tokens) for row in rows)

# ---------------------------------------------------------------- sampling
def generate(model, prompts: list[list[int]], K: int, max_new: int, eos: list[int]) -> int:
    """Hugging Face's sampler, as nft.sample is called -> answer tokens, EOS included."""
    ids = pad_sequence([torch.tensor(p) for p in prompts], True, padding_side="left")
    mask = pad_sequence([torch.ones(len(p)) for p in prompts], True, padding_side="left").long()
    out = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True,
        temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=K, max_new_tokens=max_new,
        eos_token_id=eos, pad_token_id=0)[:, ids.shape[1]:]
    ended = torch.isin(out, torch.tensor(eos, device=out.device)).long()
    return (ended.cumsum(1) - ended == 0).sum().item()  # up to the first EOS

def sample(model, prompts: list[list[int]], K: int, max_new: int, eos: list[int]) -> int:
    return sum(len(a.tokens) for a in nft.sample(model, prompts, K, max_new, eos_ids=eos))

def one_by_one(*how) -> int:
    """sample without CUDA graphs, and with room for one token more at a time."""
    block, nft.BLOCK = nft.BLOCK, 1
    try:
        return sample(*how)
    finally:
        nft.BLOCK = block

def bench_sampler(args):
    _, base, _, questions = toy()
    models = {"toy": (base, base.generation_config.eos_token_id), "mid": (mid(), range(1067))}
    for name, (model, eos) in models.items():
        for rows in (64, 256):
            for max_new in (48, 192):
                for kind, ids in (("live", list(eos)), ("full", NEVER)):
                    case = f"{name}, {rows} rows, max_new {max_new}, {kind}"
                    how = model, [q.tokens for q in questions[:rows // 8]], 8, max_new, ids
                    runs = {"nft.py": partial(sample, *how), "generate": partial(generate, *how)}
                    if re.search(args.match, case):
                        yield from compare("sampler", case, in_turn(runs, args.pairs), "tokens/s")

# ---------------------------------------------------------------- training
def trl_steps(max_new: int, pairs: int) -> dict[str, list[float]]:
    """Seconds of whole steps of nft.py and of TRL's GRPOTrainer, in turn."""
    import datasets
    import trl
    cfg, model, tokenizer, questions = toy()
    cfg, optimizer = replace(cfg, max_new=max_new), adamw(model)
    costs = {"nft.py": [], "TRL": []}

    def step():
        keys = range(len(questions))
        rows = nft.rollout(model, tokenizer, questions, keys, cfg.K, cfg, seed=len(costs["TRL"]))
        nft.update(model, optimizer, rows, cfg, len(tokenizer))

    class InTurn(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            costs["TRL"].append(time.perf_counter() - self.began)
            costs["nft.py"].append(seconds(step))

    def reward(completions, gold, **_):
        return [float(verify.grade(c[0]["content"], g)) for c, g in zip(completions, gold)]
    data = [{"prompt": [{"role": "user", "content": q.prompt}], "gold": q.answer}
            for q in questions]
    settings = trl.GRPOConfig(
        output_dir=str(TOY.parent / "runs/trl"), per_device_train_batch_size=len(data) * cfg.K, max_steps=pairs + 1,
        num_generations=cfg.K, max_completion_length=max_new, learning_rate=0.0, beta=0.0,
        num_iterations=1, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    trl.GRPOTrainer(toy()[1], reward, settings, datasets.Dataset.from_list(data),
                    processing_class=tokenizer, callbacks=[InTurn()]).train()
    return {name: values[1:] for name, values in costs.items()}

def naive_update(model, rows: list, optimizer) -> int:
    """An update as one would first write it: pad all to the longest, mask, hold all logits."""
    def padded(part):
        return pad_sequence([torch.tensor(part(row.q.tokens, row.a)) for row in rows], True)[:, 1:]
    ids = pad_sequence([torch.tensor(row.q.tokens + row.a.tokens) for row in rows], True)
    mask = padded(lambda q, a: [0.0] * len(q) + [1.0] * len(a.tokens))
    old = padded(lambda q, a: [0.0] * len(q) + a.logps)
    seen = padded(lambda q, a: [1] * len([0] + q + a.tokens))
    r, r_hat = torch.tensor([(row.r, row.r_hat) for row in rows]).split(1, dim=1)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    optimizer.zero_grad()
    (nft.grpo_loss(logp, old, r, r_hat, mask)[0] / mask.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return int(mask.sum())

def bench_train(args):
    for max_new in (48, 192) if installed("trl") else ():
        yield from compare("train", f"whole step, toy, 256 rows, max_new {max_new}",
                           trl_steps(max_new, args.pairs), "s")
    cfg, base, tokenizer, questions = toy()
    answered = nft.rollout(base, tokenizer, questions, range(len(questions)), 8, cfg, seed=0)
    lengths = [1 + int(random.Random(i).expovariate(1 / 30)) for i in range(32)]
    for name, model, rows in (("toy, 256 rows", base, answered),
                              ("mid, 32 rows", mid(), random_answers(lengths, 32000, 8))):
        optimizer = adamw(model)
        runs = {"nft.py": partial(update, model, rows, cfg, optimizer),
                "padded, all logits": partial(naive_update, model, rows, optimizer)}
        yield from compare("train", f"update, {name}", in_turn(runs, args.pairs), "tokens/s")

# ---------------------------------------------------------------- log-probs of large vocabularies
METHODS = ["nft.py", "full logits", "cross_entropy", "linear_cross_entropy"]
METHODS = METHODS if hasattr(F, "linear_cross_entropy") else METHODS[:3]  # new in torch 2.13

def log_probs(method: str, model, answer: list[int]):
    """Log-prob of each token of an answer to the prompt [0]."""
    if method == "nft.py":
        return nft.token_logps(model, [[0]], [answer])[0][0]
    ids = torch.tensor([0] + answer, device=model.device)
    hidden = model.base_model(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
    weight = model.get_output_embeddings().weight
    if method == "linear_cross_entropy":  # by chunks of nft.py's size: its "auto" is 3x slower
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
        return -F.linear_cross_entropy(hidden, weight, ids[1:], reduction="none", options=options)
    logits = F.linear(hidden, weight).float()
    if method == "cross_entropy":
        return -F.cross_entropy(logits, ids[1:], reduction="none")
    return logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]

def head(V: int, dtype: str, device: str):
    """run(method, N): forward and backward on N tokens, of a model that is little but its head."""
    model = qwen(device, vocab_size=V, hidden_size=1024, num_hidden_layers=0)
    model.get_input_embeddings().weight.requires_grad_(False)

    def run(method: str, N: int) -> None:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, dtype == "bf16"):
            logp = log_probs(method, model, random.Random(0).choices(range(V), k=N))
        (logp * torch.linspace(-1, 1, N, device=device)).sum().backward()
    return run

def probe_logps(method: str, V: int, dtype: str, device: str, N: int) -> float:
    run = head(V, dtype, device)
    before = memory(False, device)
    run(method, N)
    return memory(True, device) - before

def bench_logps(args):
    for V in (32000, 152000):
        for dtype in ("fp32", "bf16"):
            run, how = head(V, dtype, args.device), dict(V=V, dtype=dtype, device=args.device)
            costs = in_turn({m: partial(run, m, 512) for m in METHODS}, args.pairs, args.device)
            yield from compare("logps", f"V {V // 1000}k, {dtype}, 512 tokens", costs, "s")
            del run
            costs = {m: [probe("logps", method=m, N=4096, **how)] for m in METHODS}
            yield from compare("logps", f"V {V // 1000}k, {dtype}, 4096 tokens", costs, "MiB")

# ---------------------------------------------------------------- grading
PAIRS = r"""\frac{1}{2}; 0.5| \frac{3}{4}; \frac{6}{8}| \frac12; \dfrac{1}{2}| 2\sqrt{3}; \sqrt{12}
\frac{\sqrt{2}}{2}; \frac{1}{\sqrt{2}}| \pi; \frac{2\pi}{2}| 1,000; 1000| x^2+2x+1; (x+1)^2| 5; 6
2x+3; 3+2x| (1, 2); (1,2)| [0, 1); [0,1)| \{1, 2\}; \{2, 1\}| 30^\circ; 30| 50\%; 50| \$12; 12
x = 3; 3| 2^{10}; 1024| \frac{7}{3}; 2\frac{1}{3}| -4; 4| \frac{x}{2}; \frac{1}{2}x| a-b; b-a
x(x-1); x^2-x| \sqrt{50}; 5\sqrt{2}| 0.25; \frac{1}{4}| (-\infty, 2); (-\infty,2)| a+b; b+a| 3!; 6
\text{even}; even| \frac{-1}{3}; -\frac{1}{3}| 10\text{ cm}; 10| y = 2x; 2x| 17; 17.0| x^3; x^2
\left(\frac{1}{2}, 3\right); (0.5, 3)| \frac{22}{7}; \pi| 1-\sqrt{2}; \sqrt{2}-1| 2\cdot 3; 6
\frac{2}{\sqrt{5}}; \frac{2\sqrt{5}}{5}| (3, -2); (-2, 3)| 0.333; \frac{1}{3}| 6.0; 6"""
HOSTILE = {"a tower of powers": "9^{9^{9^9}}", "a factorial": "(10^9)!", "10k braces": "{" * 10**4,
           "1M digits": "9" * 10**6, "200 fractions": r"\frac{1}{" * 200 + "1" + "}" * 200}

def math_verify(text: str, gold: str) -> bool:
    """The peer of verify.grade."""
    from math_verify import parse, verify as same
    return same(parse(f"${gold}$"), parse(text))

def probe_grade(text: str) -> float:
    logging.disable()
    math_verify(r"\boxed{1}", "1")  # imports are not counted
    return seconds(lambda: math_verify(text, "7"))

def hostile_peer(text: str):
    """Seconds that the peer takes, in a process of its own, or how it failed."""
    try:
        return probe("grade", CAP, text=text)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        return f"over {CAP} s" if isinstance(error, subprocess.TimeoutExpired) else "dies"

def grade_all(grade, pairs: list[tuple[str, str]]) -> int:
    """Grade pairs of answer and gold, with nothing remembered of the last time -> how many."""
    for function in vars(verify).values():
        getattr(function, "cache_clear", int)()
    return len([grade(f"\\boxed{{{answer}}}", gold) for answer, gold in pairs])

def bench_grade(args):
    logging.disable()
    graders = {"nft.py": verify.grade}
    graders |= {"Math-Verify": math_verify} if installed("math_verify") else {}
    rows = [json.loads(row) for row in GRADED.open()] if GRADED.exists() else []
    latex = [pair.strip().split("; ") for pair in PAIRS.replace("\n", "|").split("|")]
    found = {(verify.extract_answer(row["response"]), row["answer"]) for row in rows}
    latex += sorted((answer, gold) for answer, gold in found if answer)
    rng = random.Random(0)
    integers = [(str(n := rng.randrange(10**6)), str(n + i % 2)) for i in range(500)]
    for case, pairs in ((f"{len(integers)} integers", integers), (f"{len(latex)} LaTeX", latex)):
        runs = {name: partial(grade_all, grade, pairs) for name, grade in graders.items()}
        yield from compare("grade", case, in_turn(runs, args.pairs), "answers/s")
    errors = [sum(grade(row["response"], row["answer"]) != row["label"] for row in rows)
              for grade in graders.values()]
    if rows:
        yield entry("grade", f"errors in {len(rows)} labelled answers", *errors, peer="Math-Verify")
    for name, answer in HOSTILE.items():
        text = f"\\boxed{{{answer}}}"
        theirs = hostile_peer(text) if len(graders) > 1 else None
        ours = seconds(lambda: verify.grade(text, "7"))
        yield entry("grade", f"hostile: {name}", ours, theirs, "s", "Math-Verify")

# ---------------------------------------------------------------- cost against size
AXES = {"length": [64, 128, 256, 512, 1024], "K": [4, 8, 16, 32, 64],
        "hidden": [64, 128, 256, 512, 1024], "V": [2000, 8000, 32000, 64000, 128000]}

def probe_sizes(length: int = 64, K: int = 8, hidden: int = 128, V: int = 2000) -> dict:
    """A step (sample, update) on 4 questions whose answers all have this length."""
    before = memory(False)
    model = qwen(vocab_size=V, hidden_size=hidden, num_hidden_layers=3)
    rows, optimizer = random_answers([length] * 4 * K, V, K), adamw(model)
    runs = {"sample": lambda: sample(model, [list(range(16))] * 4, K, length, NEVER) * 1.0,
            "update": lambda: update(model, rows, nft.Config(minibatches=1), optimizer) * 1.0}
    costs = {name: median(values) for name, values in in_turn(runs, 2).items()}
    return costs | {"memory": memory(True) - before}

def bench_sizes(args):
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(2, 4, figsize=(16, 7), sharey="row", layout="constrained")
    for column, (name, sizes) in zip(axes.T, AXES.items()):
        costs = [probe("sizes", **{name: size}) for size in sizes]
        for axis, kind, unit in zip(column[[0, 0, 1]], costs[0], ("s", "s", "MiB")):
            y = [cost[kind] for cost in costs]
            growth = math.log(y[-1] / y[-2]) / math.log(sizes[-1] / sizes[-2])
            axis.loglog(sizes, y, "o-", label=f"{kind}: as {name}^{growth:.1f}")
            axis.legend()
            axis.set_xlabel(name)
            axis.set_xticks(sizes, sizes)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            for size, value in zip(sizes, y):
                yield entry("sizes", f"{kind}, {name} {size}", value, unit=unit)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak MiB, model and AdamW included")
    figure.suptitle("A step on 4 questions: length 64, K 8, hidden 128, V 2000 where not said")
    figure.savefig(TOY / "bench.png", dpi=80)

# ---------------------------------------------------------------- GPU
SHAPES = {
    "1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, vocab_size=151936,
                 num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
    "7B": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, vocab_size=152064,
               num_attention_heads=28, num_key_value_heads=4),
    "tiny": dict(hidden_size=64, num_hidden_layers=2, vocab_size=512)}
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.04e12)}

def bounds(model, rows: int, context: float, tokens: int, device: str) -> tuple[float, float]:
    """Least seconds a token of decoding, that reads in bf16 all weights, keys and values a step;
    and of an update on one row of tokens, at 8 flops a weight and causal attention."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    flops, bandwidth = next((PEAKS[known] for known in PEAKS if known in name), (1e12, 1e11))
    c, weights = model.config, sum(p.numel() for p in model.parameters())
    if not c.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()  # a row a token
    width = c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    cache = rows * context * c.num_hidden_layers * 2 * width
    work = 8 * weights + 8 * c.num_hidden_layers * c.hidden_size * tokens
    return 2 * (weights + cache) / bandwidth / rows, work / flops

def bench_gpu(args):
    rows, max_new, tokens = (16, 8, 256) if args.tiny else (128, 256, 4096)
    for name in ["tiny"] if args.tiny else ["1.5B", "7B"]:
        model = qwen(args.device, **SHAPES[name])
        decoding, training = bounds(model, rows, 64 + max_new / 2, tokens, args.device)
        asked = [list(range(64))] * (rows // 8)
        how = model, asked, 8, max_new, NEVER
        runs = {"nft.py": partial(sample, *how), "generate": partial(generate, *how),
                "kernels launched one by one": partial(one_by_one, *how)}
        with torch.autocast(args.device, torch.bfloat16):
            costs = in_turn(runs, args.pairs, args.device) | {"bound": [decoding] * args.pairs}
        yield from compare("gpu", f"decode, {name}, {rows} rows", costs, "tokens/s")
        yield entry("gpu", f"decode, {name}: peak memory", memory(True, args.device), unit="MiB")
        if name == "7B":  # in bf16 and without AdamW's state: a step fits one GPU, if not a run
            model = model.bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0) if name == "7B" else adamw(model)
        for module in model.modules():  # as in nft.load_model
            module.training = isinstance(module, GradientCheckpointingLayer)
        cfg = nft.Config(dtype="bfloat16", micro_tokens=tokens, minibatches=1)
        answers = random_answers([tokens - 16], model.config.vocab_size, 1)
        run = partial(update, model, answers, cfg, optimizer)
        costs = in_turn({"nft.py": run}, args.pairs, args.device)
        costs |= {"peak flops": [training] * args.pairs}
        yield from compare("gpu", f"train, {name}, {tokens} tokens", costs, "tokens/s")
        yield entry("gpu", f"train, {name}: peak memory", memory(True, args.device), unit="MiB")
        # an iteration: 256 answers of one length, as many tokens a micro-batch
        long, cfg = 2 * max_new, replace(cfg, micro_tokens=4 * tokens)
        answers = random_answers([long] * 2 * rows, model.config.vocab_size, 16)
        with torch.autocast(args.device, torch.bfloat16):
            cost = seconds(lambda: sample(model, asked, 16, long, NEVER) * 1.0, args.device)
        case = f"iteration, {name}, {len(answers)} answers of {long} tokens"
        yield entry("gpu", f"{case}: sampling", cost, unit="s")
        cost = seconds(lambda: update(model, answers, cfg, optimizer) * 1.0, args.device)
        yield entry("gpu", f"{case}: old log-probs, training", cost, unit="s")
        yield entry("gpu", f"{case}: peak memory", memory(True, args.device), unit="MiB")
        del model, optimizer, run, runs, how  # make room for the next

def generate_batch(model, prompts: list[list[int]], K: int, max_new: int, eos: list[int]) -> int:
    """Continuous batching, as nft.sample is called -> answer tokens, EOS included."""
    settings = transformers.GenerationConfig(
        max_new_tokens=max_new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=eos, pad_token_id=0)
    answers = model.generate_batch([p for p in prompts for _ in range(K)], settings,
                                   persistent_manager=True)
    return sum(len(answer.generated_tokens) for answer in answers.values())

def bench_batch(args):
    if args.device == "cpu" and not args.tiny:
        _, model, _, questions = toy()
        eos, asked = list(model.generation_config.eos_token_id), [q.tokens for q in questions]
        cases = {f"toy, 256 rows, max_new {n}, live": (model, asked, 8, n, eos) for n in (48, 192)}
    else:
        name, rows, max_new = ("tiny", 16, 8) if args.tiny else ("1.5B", 128, 256)
        model = qwen(args.device, **SHAPES[name]).bfloat16()
        asked = [list(range(64))] * (rows // 8)
        cases = {f"decode, {name} in bf16, {rows} rows": (model, asked, 8, max_new, NEVER)}
    for case, how in cases.items():
        runs = {"nft.py": partial(sample, *how), "generate_batch": partial(generate_batch, *how)}
        yield from compare("batch", case, in_turn(runs, args.pairs, args.device), "tokens/s")

# ---------------------------------------------------------------- table
PARTS = {"sampler": bench_sampler, "train": bench_train, "logps": bench_logps, "grade": bench_grade,
         "sizes": bench_sizes, "gpu": bench_gpu, "batch": bench_batch}
PROBES = {"logps": probe_logps, "grade": probe_grade, "sizes": probe_sizes}

def about(args) -> dict:
    """Where and with what the numbers were taken."""
    names = ("torch", "transformers", "trl", "math-verify", "numpy")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    return dict(date=time.strftime("%Y-%m-%d"), machine=f"{machine}, {os.cpu_count()} cores",
                threads=torch.get_num_threads(), pairs=args.pairs,
                git=subprocess.getoutput(f"git -C '{TOY}' describe --always --dirty"),
                versions={name: metadata.version(name) for name in names if find_spec(
                    name.replace("-", "_"))})

def show(report: dict) -> None:
    """The README's table; sizes are in the picture."""
    print("| what | case | beside | nft.py | it | unit | ratio |\n|---|---|---|---|---|---|---|")
    print(*[line(row) for name in report if name != "sizes" for row in report[name]["rows"]],
          sep="\n", end="\n\n")
    for name, part in report.items():
        print(f"{name}:", {key: part[key] for key in part if key != "rows"})

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"parts, by commas: {', '.join(PARTS)}")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--match", default="", help="sampler: only cases that match; others stay")
    parser.add_argument("--tiny", action="store_true", help="gpu: try its code on a tiny model")
    parser.add_argument("--out", type=Path, default=TOY / "bench.json")
    parser.add_argument("--markdown", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    if args.probe:
        what, how = json.load(sys.stdin)
        return print(json.dumps(PROBES[what](**how)))
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.markdown:
        return show(report)
    usual = "gpu,logps,batch" if args.device == "cuda" else "sampler,batch,train,logps,grade,sizes"
    for name in (args.only or usual).split(","):
        kept = report[name]["rows"] if name in report and args.match else []
        report[name] = about(args) | {"rows": kept}
        for row in PARTS[name](args):
            kept[:] = [old for old in kept if (old["case"], old["peer"]) != (
                row["case"], row["peer"])] + [row]
            args.out.write_text(json.dumps(report, indent=1))  # parts that did not run now stay

if __name__ == "__main__":
    main()

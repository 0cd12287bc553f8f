"""NFT, Negative-aware Fine-Tuning (arXiv 2505.18116), in one file of plain PyTorch.

A model answers a question K times and a verifier calls each answer right (r = 1) or wrong (r = 0).
With r_hat the mean verdict, Bayes splits the policy that gave the answers (Eq 7):
    r_hat pi+ + (1 - r_hat) pi- = pi_old,  so  pi_theta- := (pi_old - r_hat pi_theta+) / (1 - r_hat)
is an *implicit* negative policy made of pi_theta+, the very network being trained: fitting it to
wrong answers trains pi_theta+. With token ratios R = pi_theta+ / pi_old both are one loss (Eq 10):
    loss = - sum omega(q) [ r log R + (1 - r) log max_v((1 - r_hat R) / (1 - r_hat), eps) ]
On-policy (R = 1) its gradient is that of GRPO or Dr. GRPO, whichever omega names, and its value is
0 whatever the answers: a loss near 0 is no sign of trouble (test_equivalence.py). To run it:
    python nft.py                                       # the toy: learns arithmetic on a CPU
    NFT_FSDP=1 torchrun --nproc-per-node 8 nft.py --preset 7b   # as in the paper, on 8 GPUs
Glossary: q question, a answer, r verdict, r_hat its mean over the K answers to q; logp, logp_old
log-prob of a token under pi_theta+, pi_old; mask 1 on answer tokens and EOS; B answers, T tokens.
"""
import contextlib, json, math, os, re, resource, shutil, signal, subprocess, sys, time, warnings
from collections import namedtuple
from dataclasses import asdict, dataclass, field
from pathlib import Path
import datasets, matplotlib.figure, numpy as np, pandas as pd, safetensors, torch, transformers
from torch import Tensor, distributed as dist, nn
from torch.distributed import checkpoint as dcp, fsdp
from tqdm import tqdm
from verify import check_gold, extract_answer, grade
# ---------------------------------------------------------------- the method: tensors to tensors
def max_v(x: Tensor, eps: float) -> Tensor:
    """Eq 10's straight-through floor: the value of max(x, eps), the gradient of x. A plain maximum
    has no gradient below eps and halves it on the tie x = eps = 1, where on-policy steps start."""
    return x.clamp(min=eps).detach() + (x - x.detach())  # Eq 10's sg[max(x, eps) - x] + x, exact
def prompt_weight(r_hat: Tensor, omega: str) -> Tensor:
    """omega(q) of Eq 10, shaped as r_hat; KeyError for an unknown name."""
    return {"one": torch.ones_like(r_hat), "dr_grpo": 1 - r_hat,
            "grpo": ((1 - r_hat) / r_hat).sqrt()}[omega]
def nft_loss(logp: Tensor, logp_old: Tensor, r: Tensor, r_hat: Tensor, mask: Tensor, *,
             omega: str = "dr_grpo", eps: float = 1.0, neg_weight: float = 1.0):
    """Eq 10, summed over tokens: the caller divides by the tokens of the whole optimiser step.
    logp, logp_old, mask (B, T); r, r_hat (B, 1); neg_weight of the negative term: 1 is NFT, 0 RFT.
    Returns loss_sum and, detached, stats (B, T): R, floored. ValueError unless 0 < r_hat < 1."""
    if not ((r_hat > 0) & (r_hat < 1)).all():
        raise ValueError("nft_loss needs 0 < r_hat < 1: drop questions all right or all wrong")
    log_R = torch.where(mask > 0, logp - logp_old, 0.0)
    R = log_R.clamp(max=20).exp()  # e^20 at most: what follows stays finite
    R_neg = (1 - r_hat * R) / (1 - r_hat)
    ll = r * log_R + neg_weight * (1 - r) * max_v(R_neg, eps).log()
    loss = -prompt_weight(r_hat, omega) * ll * mask
    return loss.sum(), {"R": R.detach(), "floored": (1 - r) * (R_neg < eps) * mask}
def grpo_loss(logp: Tensor, logp_old: Tensor, r: Tensor, r_hat: Tensor, mask: Tensor, *,
              clip_low: float = 0.2, clip_high: float = 0.2, std: bool = True):
    """GRPO's clipped surrogate; arguments and result as of nft_loss, any r_hat. std: are advantages
    over the *population* standard deviation? Not in Dr. GRPO. DAPO: clip_high 0.28, mixed only."""
    R = torch.where(mask > 0, logp - logp_old, 0.0).clamp(max=20).exp()
    A = r - r_hat
    if std:
        A = A / (r_hat * (1 - r_hat)).sqrt().clamp(min=1e-6)  # 0 where verdicts agree
    free, clipped = R * A, R.clamp(1 - clip_low, 1 + clip_high) * A
    loss = -torch.minimum(free, clipped) * mask
    return loss.sum(), {"R": R.detach(), "floored": (clipped < free) * mask}
ALGORITHMS = {  # --algo: loss, keywords that flags do not set, train on mixed questions only?
    "nft": (nft_loss, {}, True), "rft": (nft_loss, {"neg_weight": 0.0}, True),
    "grpo": (grpo_loss, {"std": True}, False), "dr_grpo": (grpo_loss, {"std": False}, False),
    "dapo": (grpo_loss, {"std": True}, True)}
# ---------------------------------------------------------------- configuration
class RunError(ValueError):
    """What the user can mend (a flag, file or model), in a sentence: `main` prints it, exits 1."""
def require(ok, sentence: str) -> None:
    if not ok:
        raise RunError(sentence)
def flag(default, help: str, *choices):
    return field(default=default, metadata={"help": help, "choices": choices or None})
@dataclass
class Config:
    """Defaults are the toy's; PRESETS says what the paper's runs change."""
    preset: str = flag("toy", "settings to start from", "toy", "7b", "32b")
    model: str = flag("toy/base", "Hugging Face model: a directory or a Hub id")
    train: str = flag("toy/train.jsonl", "questions: .jsonl, .json, .parquet, ID[[:CONFIG]:SPLIT]")
    eval: str = flag("toy/test.jsonl", "held-out sets like --train, by commas: [NAME[@k]=]PATH")
    out: str | None = flag(None, "folder of results; if none is given, runs/PRESET-ALGO-SEED")
    instruction: str = flag("", "what follows a question that is text rather than chat messages")
    algo: str = flag("nft", "algorithm", *ALGORITHMS)
    omega: str | None = flag(None, "prompt weight (dr_grpo; in rft one)", "one", "dr_grpo", "grpo")
    eps: float = flag(1.0, "floor of the negative ratio R_neg")
    neg_weight: float = flag(1.0, "nft: weight of the negative term")
    clip_low: float = flag(0.2, "grpo, dr_grpo, dapo: R is clipped below 1 - clip_low")
    clip_high: float = flag(0.28, "grpo, dr_grpo, dapo: R is clipped above 1 + clip_high")
    iterations: int = flag(20, "rounds of sampling and training")
    questions: int = flag(32, "questions an iteration trains on")
    K: int = flag(8, "answers sampled per question")
    minibatches: int = flag(4, "optimiser steps an iteration, at most; 1 is on-policy")
    max_prompt: int = flag(64, "longest prompt in tokens; longer ones are dropped and counted")
    max_new: int = flag(64, "longest answer in tokens; one cut there is wrong")
    temperature: float = flag(1.0, "of sampling in training and of the log-probs trained on")
    lr: float = flag(1e-4, "AdamW learning rate")
    warmup: int = flag(0, "iterations of linear warm-up; constant after")
    weight_decay: float = flag(0.1, "AdamW weight decay")
    grad_clip: float = flag(1.0, "largest gradient norm")
    eval_every: int = flag(5, "iterations between evaluations (0: only before and after)")
    eval_k: int = flag(8, "answers per held-out question")
    eval_temperature: float = flag(1.0, "of sampling in evaluation; 0 is greedy")
    eval_top_p: float = flag(1.0, "nucleus of sampling in evaluation")
    eval_only: bool = flag(False, "evaluate --model and stop")
    save_every: int = flag(10, "iterations between checkpoints")
    sample_rows: int = flag(512, "answers decoded side by side; bounds key/value memory")
    micro_tokens: int = flag(1024, "tokens of a micro-batch, padding included; bounds activations")
    dtype: str = flag("float32", "bfloat16: over fp32 weights", "float32", "bfloat16", "float64")
    tensorboard: bool = flag(False, "also log the metrics for TensorBoard, which must be there")
    seed: int = flag(0, "of all randomness")
    def __post_init__(self):
        self.omega = self.omega or ("one" if self.algo == "rft" else "dr_grpo")
        run = f"runs/{self.preset}-{self.algo}-{self.seed}"
        self.out = self.out or run + "-eval" * self.eval_only
        low = dict(K=2, eval_k=1, iterations=1, questions=1, minibatches=1, max_new=1, eps=1e-6,
                   lr=0, grad_clip=1e-6, save_every=1, temperature=0.01, eval_temperature=0, seed=0,
                   eval_top_p=0, weight_decay=0)
        for name, x in low.items():
            require(getattr(self, name) >= x, f"--{name} must be {x} or more")
DATA = "hf://datasets/ChenDRAG/VeRL_math_validation/{}.parquet"  # the official code's files
PAPER = dict(
    train=DATA.format("dapo-math-17k_10boxed"), eval_every=20, sample_rows=128, micro_tokens=16384,
    eval=",".join(f"{name}={DATA.format(file)}" for name, file in {
        "aime24@32": "aime-2024-boxed_w_answer", "aime25@32": "aime2025_32_dapo_boxed_w_answer",
        "amc23@32": "amc2023_32_dapo_boxed_w_answer", "math500@1": "math500_boxed",
        "olympiad@1": "olympiadbench", "minerva@1": "minerva_math"}.items()), dtype="bfloat16",
    instruction="\nPlease reason step by step, and put your final answer within \\boxed{}.",
    iterations=320, questions=512, K=16, minibatches=16, lr=1e-6, warmup=10, eval_top_p=0.7)
PRESETS = {"toy": {}, "7b": PAPER | dict(
    model="Qwen/Qwen2.5-Math-7B", max_prompt=512, max_new=3584), "32b": PAPER | dict(
    model="Qwen/Qwen2.5-32B", max_prompt=2048, max_new=14336, sample_rows=32, eval_temperature=0.6)}
def parse_args(argv: list[str] | None) -> Config:
    """Flags over the preset's values over the defaults. Raises RunError, or exits as argparse."""
    parser = transformers.HfArgumentParser(Config, description=__doc__.split("\n")[0])
    parser.set_defaults(**PRESETS[parser.parse_known_args(argv)[0].preset])
    return Config(**vars(parser.parse_args(argv)))
# ---------------------------------------------------------------- model, on many ranks; questions
RANK, WORLD, TP, FSDP = (int(os.environ.get(name, default)) for name, default in
                         [("RANK", 0), ("WORLD_SIZE", 1), ("NFT_TP", 1), ("NFT_FSDP", 0)])
SHARE, SHARES = RANK // TP, WORLD // TP  # of the data: NFT_TP ranks hold one model, share one
def gather(share: list) -> list:
    """The lists of all shares, concatenated in order, on every rank."""
    lists = [share] * WORLD
    if dist.is_initialized():
        dist.all_gather_object(lists, share)
    return sum(lists[::TP], [])
@contextlib.contextmanager
def gathered(model, cfg: Config):
    """To sample in: whole weights and none of FSDP's hooks, so that no rank waits for another."""
    units = [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
    for unit in units:
        unit.unshard()
        unit._compiled_call_impl = unit.forward  # past the hooks, which no CUDA graph could hold
    with torch.autocast(model.device.type, torch.bfloat16, cfg.dtype == "bfloat16"):
        yield
    for unit in units:
        unit._compiled_call_impl = None
        unit.reshard()
def load_model(cfg: Config):
    """Model, with all its EOS ids, and tokenizer; or RunError. NFT_FSDP: 0 a copy a rank, 1 shards
    over all ranks, n over n and copies over the rest. A rank reads its part of the weights only."""
    dtype, size = getattr(torch, cfg.dtype), SHARES if FSDP == 1 else FSDP or 1
    require(WORLD % TP == 0 == SHARES % size, f"bad NFT_TP={TP}, NFT_FSDP={FSDP} for {WORLD} ranks")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(cfg.model)
        layout = dict(tp_size=TP, fsdp_size=size, dp_replicate_size=SHARES // size,
                      fsdp_mixed_precision=dtype == torch.bfloat16)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            cfg.model, dtype=torch.promote_types(dtype, torch.float32), distributed_config=layout)
        eos = {*np.ravel(model.generation_config.eos_token_id).tolist(), tokenizer.eos_token_id}
        model.generation_config.eos_token_id = sorted(eos - {None})
        require(model.generation_config.eos_token_id, "it has no EOS id")
        require(tokenizer.chat_template, "its tokenizer has no chat template")
        require(model.config.get_text_config() is model.config, "it reads more than text")
        most = getattr(model.config, "max_position_embeddings", None) or math.inf
        require(cfg.max_prompt + cfg.max_new <= most, f"--max_prompt and --max_new exceed {most}")
        for part in model.to("cuda" if torch.cuda.is_available() else "cpu").modules():
            part.training = isinstance(part, transformers.GradientCheckpointingLayer)
        model.token_logps = token_logps.__get__(model)
        fsdp.register_fsdp_forward_method(model, "token_logps")  # FSDP gathers weights for it
        with torch.no_grad(), gathered(model, cfg):  # Mamba keeps no keys, Gemma 2 caps its logits
            answers = sample(model, [[1], [1] * 9], 1, min(64, cfg.max_new), eos_ids=[])
            logp, _ = model.token_logps([[1], [1] * 9], [a.tokens for a in answers])
        gap = (logp - logp.new_tensor([a.logps for a in answers])).abs().mean()
        require(gap < (0.2 if dtype.itemsize < 4 else 0.01), f"sampled log-probs are {gap:.2f} off")
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds
        raise RunError(f"--model {cfg.model}: {error} {error.__cause__ or ''}") from error
    return model, tokenizer
Question = namedtuple("Question", "prompt answer tokens", defaults=[()])  # gold; ids of the prompt
def load_questions(path: str, tokenizer=None, cfg: Config | None = None) -> list[Question]:
    """Questions of a file or of HUB_ID[[:CONFIG]:SPLIT]; RunError names a bad row. With a tokenizer
    they are encoded, and repeated ones and those above cfg.max_prompt dropped."""
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(Path(path).suffix)
    name, *config = [kind] if kind else path.split(":")
    split, files = config.pop() if config else "train", {"data_files": path} if kind else {}
    where, found = path, {}
    try:
        for n, row in enumerate(datasets.load_dataset(name, *config, split=split, **files), 1):
            where, row = f"{path}, row {n}", row | (row.get("reward_model") or {})
            row = {column: value for column, value in row.items() if value is not None}
            prompt = next((row[c] for c in ("question", "problem", "prompt") if c in row), None)
            gold = next((row[c] for c in ("answer", "solution", "ground_truth") if c in row), None)
            require(prompt and type(gold) in (str, int, float), f"no question or answer: {[*row]}")
            gold = str(gold).split("####")[-1].strip()  # GSM8K's way, then MATH's
            gold = extract_answer(gold) or "" if "\\boxed" in gold else gold
            check_gold(gold)
            if not tokenizer:
                found[n] = Question(prompt, gold)
            elif (key := str((prompt, gold))) not in found:
                found[key] = Question(prompt, gold, encode(tokenizer, prompt, cfg.instruction))
    except Exception as error:  # datasets raises many kinds, the reason is in the cause
        raise RunError(f"{where}: {error.__cause__ or str(error) or 'no rows'}") from error
    kept = [q for q in found.values() if not tokenizer or len(q.tokens) <= cfg.max_prompt]
    if len(kept) < n and RANK == 0:
        print(f"{path}: {n - len(kept)} of {n} rows dropped, repeated or above --max_prompt")
    require(kept, f"{path}: no question is left")
    return kept
def encode(tokenizer, prompt: list[dict] | str, instruction: str = "") -> list[int]:
    """Tokens of the prompt in the model's chat template."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt + instruction}]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
# ---------------------------------------------------------------- scoring and sampling
def log_softmax(logits: Tensor, tau: float) -> Tensor:  # at temperature tau; bf16 is too coarse
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / tau).log_softmax(-1)
def pad(rows, side: str = "right") -> Tensor:  # vectors as the rows of (B, T), 0 beyond their ends
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
def token_logps(model, prompts: list[list[int]], answers: list[list[int]], *,
                temperature: float = 1.0, vocab: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probs of the answers' tokens by teacher forcing, and mask: both (B, T), 0 on padding. It
    is on the right, unseen by causal attention, and known by length, as its id may be EOS.
    prompts, answers: B lists of token ids, none empty; ids from `vocab` on do not exist."""
    ids = pad([torch.tensor(p + a) for p, a in zip(prompts, answers)]).to(model.device)
    is_answer = pad([torch.arange(len(p + a)) >= len(p) for p, a in zip(prompts, answers)])
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden, target = hidden[:, :-1][is_answer[:, 1:]], ids[is_answer]  # state t - 1 predicts t
    def logp_of(hidden, target):
        logp = log_softmax(model.get_output_embeddings().forward(hidden)[:, :vocab], temperature)
        return logp.gather(-1, target[:, None])[:, 0]
    # 512 at a time, recomputed in backward; `forward` skips FSDP's hooks: ranks differ in calls
    logp = torch.cat([torch.utils.checkpoint.checkpoint(logp_of, h, y, use_reentrant=False)
                      for h, y in zip(hidden.split(512), target.split(512))])
    logp = logp.split([len(a) for a in answers])
    return pad(logp), pad([torch.ones_like(row) for row in logp])
def pick(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw by inverse CDF from softmax(logits / temperature), 0 is greedy, or its nucleus top_p:
    logits (B, V), u (B,) uniform in [0, 1) -> tokens, log-probs as drawn (B,), or NaN."""
    logp = log_softmax(logits, max(temperature, 1e-6))
    if top_p < 1:
        logp = transformers.TopPLogitsWarper(top_p)(None, logp).log_softmax(-1)
    cdf = logp.exp().cumsum(-1, dtype=torch.float64)  # exact enough to agree on NFT_TP ranks
    token = torch.searchsorted(cdf, cdf[:, -1:] * u[:, None], right=True).clamp(max=len(cdf.T) - 1)
    return token[:, 0], logp.gather(-1, token)[:, 0].double()
Answer = namedtuple("Answer", "tokens logps finished")  # ids with EOS; log-probs; ended by EOS?
class Layer(transformers.StaticLayer):  # of a cache: keys as the values, not in RoPE's fp32
    def update(self, key, value, *_, **__):
        return super().update(key.to(value.dtype), value)
BLOCK = 128 if torch.cuda.is_available() else 8  # decoding steps between looks for ended answers
@torch.no_grad()
def sample(model, prompts: list[list[int]], K: int, max_new: int, *, eos_ids, temperature=1.0,
           top_p=1.0, seed=0, keys=None, vocab=None) -> list[Answer]:
    """K answers to each prompt, grouped by prompt, of ids below vocab. Answer k is drawn by numbers
    that depend on (seed, key of its prompt, k) alone; keys: 0, 1... RunError on broken weights."""
    u = [np.random.default_rng([seed, key, k]).random(max_new, np.float32)
         for key in keys or range(len(prompts)) for k in range(K)]
    u = torch.from_numpy(np.stack(u)).to(model.device)  # (answers, max_new)
    tokens, logps = torch.full_like(u, -1).long(), torch.zeros_like(u).double()
    live, eos = torch.arange(len(u), device=u.device), torch.tensor(list(eos_ids), device=u.device)
    ids, t = [torch.tensor(p, device=u.device) for p in prompts], torch.full_like(live[:1], -1)
    mask = pad([torch.ones_like(p) for p in ids], "left")
    ids, position = pad(ids, "left"), (mask.cumsum(-1) - 1).clamp(min=0)
    cache = transformers.Cache(layer_class_to_replicate=lambda n=ids.shape[1]: Layer(n))
    def step() -> Tensor:  # -> token t of the live answers, those still in the batch
        t.add_(1)  # in place, as all that a CUDA graph changes
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position + t,
                       past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits = logits[:, -1, :vocab].repeat_interleave(len(live) // len(logits), 0)  # t = 0: K
        tokens[live, t], logps[live, t] = pick(logits, u[live, t], temperature, top_p)
        return tokens[live, t][:, None]
    ids, position, keep = step(), position[:, -1:], live // K  # keep: rows of the cache, now K each
    record = u.is_cuda and TP == 1 and "grouped_mm" not in str(model.get_experts_implementation())
    for n in map(len, torch.arange(1, max_new).split(BLOCK if model._can_compile_fullgraph else 1)):
        mask, position = nn.functional.pad(mask[keep], (0, n), value=1), position[keep]
        for layer in cache.layers:  # room for n tokens
            layer.keys = nn.functional.pad(layer.keys[keep], (0, 0, 0, n))
            layer.values = nn.functional.pad(layer.values[keep], (0, 0, 0, n))
            layer.max_cache_len += n
        repeat(lambda: ids.copy_(step()), n, record)
        keep = ~torch.isin(tokens[live], eos).any(1)
        live, ids = live[keep], ids[keep]
        if len(live) == 0:
            break
    require(logps.isfinite().all(), "log-probs are not finite: the weights must be broken")
    length = (torch.isin(tokens, eos).cumsum(1) == 0).sum(1) + 1  # with EOS; max_new + 1 if cut
    return [Answer(row[:n], logp[:n], n <= max_new)
            for row, logp, n in zip(tokens.tolist(), logps.tolist(), length.tolist())]
def repeat(step, times: int, record: bool) -> None:
    """step() so many times, the later ones by a CUDA graph: quicker than kernel by kernel."""
    for turn in range(times):
        if record and turn == 1:
            with torch.cuda.graph(g := torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                step()
            step = g.replay
        step()
# ---------------------------------------------------------------- Algorithm 1: collect, update
Row = namedtuple("Row", "q a text r r_hat")  # Question, Answer, its text; a question's K in a row
def rollout(model, tokenizer, questions: list[Question], keys, K: int, cfg: Config, **how):
    """K rows a question, sampled and graded in shares; how: `sample`'s seed, temperature, top_p."""
    first, last = len(questions) * SHARE // SHARES, len(questions) * (SHARE + 1) // SHARES
    rows, step, vocab = [], max(1, cfg.sample_rows // K), max(tokenizer.get_vocab().values()) + 1
    with gathered(model, cfg):
        for at in range(first, last, step):
            part = slice(at, min(at + step, last))
            answers = sample(model, [q.tokens for q in questions[part]], K, cfg.max_new,
                             eos_ids=model.generation_config.eos_token_id, vocab=vocab,
                             keys=keys[part], **how)
            texts = tokenizer.batch_decode([a.tokens for a in answers], skip_special_tokens=True)
            asked = [q for q in questions[part] for _ in range(K)]
            r = [float(a.finished and grade(t, q.answer)) for q, a, t in zip(asked, answers, texts)]
            r_hat = np.reshape(r, (-1, K)).mean(1).repeat(K)
            rows += map(Row, asked, answers, texts, r, r_hat)
    return gather(rows)
def collect(model, tokenizer, data: list[Question], cfg: Config, drawn: int, rounds: int = 10):
    """Algorithm 1, lines 5-9: ask until cfg.questions are mixed -> rows to train on, metrics.
    drawn: questions drawn before, from an endless stream of shuffled passes over `data`."""
    began, rows, kept, (_, _, mixed_only) = time.time(), [], [], ALGORITHMS[cfg.algo]
    while rounds > 0 and len(kept) < cfg.questions * cfg.K:
        kept_frac = max(len(kept), 1) / max(len(rows), 1)  # so far; 1 in the first round
        n = math.ceil((cfg.questions - len(kept) // cfg.K) / max(kept_frac, 0.3))
        keys, drawn = range(drawn, drawn + n), drawn + n
        asked = [data[np.random.default_rng([cfg.seed, turn]).permutation(len(data))[place]]
                 for turn, place in (divmod(key, len(data)) for key in keys)]
        rows += rollout(model, tokenizer, asked, keys, cfg.K, cfg, seed=2 * cfg.seed,
                        temperature=cfg.temperature)  # and no top_p: token_logps knows of none
        kept = [row for row in rows if 0 < row.r_hat < 1 or not mixed_only][:cfg.questions * cfg.K]
        rounds -= 1
    tokens, acc = sum(len(row.a.tokens) for row in rows), np.mean([row.r for row in rows])
    require(kept, f"none of {len(rows) // cfg.K} questions got both right and wrong answers "
                  f"(accuracy {acc:.1%}): there is nothing to learn from")
    return kept, dict(
        drawn=drawn, kept=len(kept) // cfg.K, acc=acc, r_hat=np.mean([row.r_hat for row in kept]),
        kept_frac=np.mean([0 < row.r_hat < 1 for row in rows]), length=tokens / len(rows),
        truncated_frac=np.mean([not row.a.finished for row in rows]),
        entropy=-sum(sum(row.a.logps) for row in rows) / tokens,  # E[-log p], tokens drawn from p
        sample_tokens_per_s=tokens / (time.time() - began), sample_seconds=time.time() - began)
def micro_batches(rows: list[Row], micro_tokens: int) -> list[tuple[list[Row], float]]:
    """(rows, weight) for this rank: longest first, micro_tokens with padding each. All ranks get
    equally many, filled up at weight 0: in unequal numbers of passes FSDP would wait for ever."""
    rows, parts = sorted(rows, key=lambda row: -len(row.q.tokens + row.a.tokens)), []
    while rows:
        n = max(1, micro_tokens // len(rows[0].q.tokens + rows[0].a.tokens))
        parts.append((rows[:n], 1.0))
        rows = rows[n:]
    parts += [(parts[-1][0], 0.0)] * (-len(parts) % SHARES)
    return parts[SHARE::SHARES]
def update(model, optimizer, rows: list[Row], cfg: Config, vocab: int) -> dict[str, float]:
    """Lines 10-16: one optimiser step on each minibatch of questions -> metrics. The loss is its
    sum over tokens / answer tokens of the minibatch, on all ranks. RunError if it is not finite."""
    began, log, norms = time.time(), [], []
    loss_fn, fixed, _ = ALGORITHMS[cfg.algo]
    settings = {k: vars(cfg).get(k, v) for k, v in (loss_fn.__kwdefaults__ or {}).items()} | fixed
    logps_of = getattr(model, "token_logps", token_logps.__get__(model))  # load_model's, for FSDP
    def score(part):
        prompts, answers = [row.q.tokens for row in part], [row.a.tokens for row in part]
        with torch.autocast(model.device.type, torch.bfloat16, cfg.dtype == "bfloat16"):
            return logps_of(prompts, answers, temperature=cfg.temperature, vocab=vocab)
    def sampled(part):  # the sampler's own log-probs
        return pad([torch.tensor(row.a.logps, dtype=model.dtype) for row in part]).to(model.device)
    size = cfg.K * math.ceil(len(rows) / cfg.K / cfg.minibatches)
    minibatches = [rows[at:at + size] for at in range(0, len(rows), size)]
    with torch.no_grad():  # while the model is pi_old; in bf16 the sampler's are too rough
        old = (lambda part: score(part)[0]) if cfg.dtype == "bfloat16" else sampled
        batches = [[(part, weight, old(part)) for part, weight
                    in micro_batches(minibatch, cfg.micro_tokens)] for minibatch in minibatches]
    if cfg.dtype == "bfloat16":  # to save memory; off while sampling: it disables the cache
        model.activation_checkpointing_enable()
    for minibatch, batch in zip(minibatches, batches):
        n_tokens = sum(len(row.a.tokens) for row in minibatch)
        optimizer.zero_grad()
        for part, weight, logp_old in batch:
            logp, mask = score(part)
            r, r_hat = logp.new_tensor([(row.r, row.r_hat) for row in part]).split(1, dim=1)
            loss_sum, stats = loss_fn(logp, logp_old, r, r_hat, mask * weight, **settings)
            (loss_sum * SHARES / n_tokens).backward()  # FSDP takes the mean over ranks
            gap = (logp - sampled(part)).abs().max() * (not norms)  # in the first step: on policy
            R, floored = stats["R"] * mask * weight, stats["floored"].sum()
            log.append([x.item() for x in (loss_sum, R.sum(), floored, R.max(), gap)])
        parts = [p.grad.norm() for p in model.parameters()]  # with NFT_TP they lie on two meshes
        parts = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in parts]
        norms.append(torch.stack(parts).norm())
        asked = sorted({str(row.q.prompt)[-60:] for row in minibatch})
        require(norms[-1].isfinite(), f"step {len(norms)} of an update: the gradient's norm is "
                f"{norms[-1]}, on {asked}; the last checkpoint is in {cfg.out}/checkpoint")
        nn.utils.clip_grads_with_norm_(model.parameters(), cfg.grad_clip, norms[-1], foreach=False)
        optimizer.step()
        model.to(model.dtype)  # FSDP sets up its shards anew: a tied one would miss this step
    model.activation_checkpointing_disable()
    loss, R, floored, R_max, gap = np.array(gather(log)).T  # each: a number a micro-batch
    tokens, seconds = sum(len(row.a.tokens) for row in rows), time.time() - began
    return dict(loss=loss.sum() / tokens, R_mean=R.sum() / tokens, R_max=R_max.max(),
                floored_frac=floored.sum() / tokens, logp_gap=gap.max(), train_seconds=seconds,
                grad_norm=torch.stack(norms).mean().item(), train_tokens_per_s=tokens / seconds)
# ---------------------------------------------------------------- evaluation, files, main
def append(out: Path, name: str, rows: list, **where) -> None:
    """Add rows to out/NAME.jsonl: dicts, or graded answers as `python verify.py` reads them."""
    if RANK == 0:
        rows = [dict(question=row.q.prompt, answer=row.q.answer, response=row.text, r=row.r,
                     cut=not row.a.finished) if isinstance(row, Row) else row for row in rows]
        with (out / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(where | row, default=float) + "\n" for row in rows)
def evaluate(model, tokenizer, sets: dict, cfg: Config, out: Path, iteration: int) -> None:
    """Log and print avg@k, the mean verdict (95% bootstrap interval over questions), and pass@k,
    the share got right at least once; draw the curves. sets: name -> (questions, k)."""
    for name, (questions, k) in sets.items():
        rows = rollout(model, tokenizer, questions, range(len(questions)), k, cfg,
                       seed=2 * cfg.seed + 1,  # never the numbers that training draws with
                       temperature=cfg.eval_temperature, top_p=cfg.eval_top_p)
        each = np.array([row.r_hat for row in rows[::k]])
        means = np.random.default_rng(0).choice(each, (2000, len(each))).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        append(out, "eval", [{"name": name, "n": len(each), "k": k, "avg": each.mean(), "low": low,
                              "high": high, "pass": np.mean(each > 0)}], iteration=iteration)
        append(out, "samples", rows[:None if cfg.eval_only else 32], iteration=iteration, set=name)
    if RANK == 0:
        evals = pd.read_json(out / "eval.jsonl", lines=True)
        tqdm.write(evals.to_string(index=False, float_format="{:.3f}".format))
        tqdm.write(f"mean of the sets: {evals.groupby('iteration').avg.mean().round(3).to_dict()}")
    if RANK == 0 and iteration > 0:
        axes = pd.read_json(out / "metrics.jsonl", lines=True).plot(
            x="iteration", y=["acc", "kept_frac", "entropy", "length", "R_max", "grad_norm"],
            subplots=True, ax=matplotlib.figure.Figure(figsize=(14, 7)).subplots(2, 3))
        evals.pivot_table(["avg", "pass"], "iteration", "name").plot(ax=axes[0], style="o--")
        axes[0].legend().figure.savefig(out / "curves.png", dpi=90, bbox_inches="tight")
def open_run(cfg: Config, state: dict) -> Path:
    """The folder --out: loads its last checkpoint into `state` and drops log rows after it."""
    out, config = Path(cfg.out), asdict(cfg)
    if RANK == 0:
        old = json.loads(file.read_text()) if (file := out / "config.json").exists() else config
        ours = file.exists() and (any(out.glob("checkpoint/0*")) or not (out / "final").exists())
        require(ours or not any(out.glob("*.jsonl")), f"--out {out} holds logs but no checkpoint")
        other = {k for k in config if config[k] != old.get(k)} - {
            "out", "iterations", "save_every", "sample_rows", "micro_tokens"}
        require(not other, f"--out {out} holds a run with other {', '.join(other)}: choose another")
        (out / "checkpoint").mkdir(parents=True, exist_ok=True)
        config |= {"torch": torch.__version__, "transformers": transformers.__version__,
                   "git": subprocess.getoutput(f"git -C '{Path(__file__).parent}' rev-parse HEAD")}
        (out / "part").write_text(json.dumps(config, indent=1))
        (out / "part").rename(file)
    if saved := sorted(out.glob("checkpoint/0*")):
        for p in state["model"].parameters():
            p.grad = torch.zeros_like(p)
        state["optimizer"].step()  # at lr 0: makes the moments that are to be loaded
        dcp.load(state, checkpoint_id=saved[-1])
    for path in out.glob("*.jsonl") if RANK == 0 else []:  # a kill may have cut the last row
        rows = [row for row in path.read_bytes().splitlines(True) if row.endswith(b"\n")
                and 0 < state["iteration"] >= json.loads(row).get("iteration", 0)]
        os.truncate(path, sum(map(len, rows)))
    return out
def save(out: Path, state: dict) -> None:
    """Write checkpoint/ITERATION aside, then rename it, so that it is whole or absent; keep two."""
    part = out / "checkpoint/part"
    dcp.save(state, checkpoint_id=part)
    if RANK == 0:
        part.rename(out / f"checkpoint/{state['iteration']:06}")
        for old in sorted(out.glob("checkpoint/0*"))[:-2]:
            shutil.rmtree(old)
def train(cfg: Config) -> None:
    """Algorithm 1, with an evaluation before, during and after it."""
    model, tokenizer = load_model(cfg)
    sets = {name or Path(path).stem: (load_questions(path, tokenizer, cfg), int(k or cfg.eval_k))
            for name, k, path in re.findall(r"(?:([^@=,]+)(?:@([1-9]\d*))?=)?([^,]+)", cfg.eval)}
    require(len(sets) > cfg.eval.count(","), f"--eval {cfg.eval}: each set needs a name of its own")
    data = [] if cfg.eval_only else load_questions(cfg.train, tokenizer, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=cfg.weight_decay)
    state, stop = {"model": model, "optimizer": optimizer, "iteration": 0, "drawn": 0}, []
    out = open_run(cfg, state)
    if state["iteration"] == 0:
        evaluate(model, tokenizer, sets, cfg, out, iteration=0)
    if cfg.eval_only:
        return
    if cfg.tensorboard and RANK == 0:
        from torch.utils.tensorboard import SummaryWriter
        board = SummaryWriter(out)
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))  # of a job to be preempted
    for iteration in (bar := tqdm(range(state["iteration"] + 1, cfg.iterations + 1), disable=RANK)):
        began, lr = time.time(), cfg.lr * min(1, iteration / max(1, cfg.warmup))
        optimizer.param_groups[0]["lr"] = lr
        rows, metrics = collect(model, tokenizer, data, cfg, state["drawn"])  # the model is pi_old
        metrics |= update(model, optimizer, rows, cfg, max(tokenizer.get_vocab().values()) + 1)
        peak = torch.cuda.max_memory_allocated() or 1024 * resource.getrusage(0).ru_maxrss
        flops = 6 * model.num_parameters() * sum(len(row.q.tokens + row.a.tokens) for row in rows)
        metrics |= {"lr": lr, "peak_gb": max(gather([peak / 1e9])), "seconds": time.time() - began,
                    "mfu": flops / metrics["train_seconds"] / WORLD / 989e12}  # of H100s in bf16
        append(out, "metrics", [metrics], iteration=iteration)
        for name in metrics if cfg.tensorboard and RANK == 0 else ():
            board.add_scalar(name, metrics[name], iteration)
        append(out, "samples", rows[:4], iteration=iteration, set="train")
        bar.set_postfix({name: metrics[name] for name in ("acc", "kept_frac", "entropy", "length")})
        state |= {"iteration": iteration, "drawn": metrics["drawn"]}
        last, stopped = iteration == cfg.iterations, any(gather(stop))
        if last or cfg.eval_every and iteration % cfg.eval_every == 0:
            evaluate(model, tokenizer, sets, cfg, out, iteration)
        if last or stopped or iteration % cfg.save_every == 0:
            save(out, state)
        if stopped and not last:
            return RANK or tqdm.write(f"stopped by SIGTERM after iteration {iteration}, saved")
    model.save_pretrained(out / "final")
    tokenizer.save_pretrained(out / "final")
def main(argv: list[str] | None = None) -> None:
    """Run the flags; what one sentence explains ends in that sentence and exit status 1."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*torch.distributed is disabled")  # one process saves too
    try:
        train(parse_args(argv))
        time.sleep(dist.is_initialized())  # 1 s: gloo threads abort if Python ends before them
    except (RunError, OSError, ImportError, safetensors.SafetensorError) as error:
        sys.exit(f"nft.py: {' '.join(str(error).split())}")
    except dcp.api.CheckpointException as error:
        sys.exit(f"nft.py: checkpoint damaged or disk full: {error.failures.popitem()[1][0]!r}")
if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()

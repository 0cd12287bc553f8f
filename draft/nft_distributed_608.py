"""NFT, Negative-aware Fine-Tuning (arXiv 2505.18116), in one file of plain PyTorch.

A model answers a question K times and a verifier calls each answer right (r = 1) or wrong (r = 0).
With r_hat the mean verdict, Bayes splits the policy that gave the answers (Eq 7):
    r_hat pi+ + (1 - r_hat) pi- = pi_old,  so  pi_theta- := (pi_old - r_hat pi_theta+) / (1 - r_hat)
is an *implicit* negative policy made of pi_theta+, the very network being trained: fitting it to
wrong answers by maximum likelihood trains pi_theta+. With token ratios R = pi_theta+ / pi_old the
whole method is one supervised loss (Eq 10):
    R_neg = (1 - r_hat R) / (1 - r_hat)
    loss  = - sum_{q,a} omega(q) sum_t [ r log R + (1 - r) log max_v(R_neg, eps) ]
On-policy (R = 1) its gradient is GRPO's or Dr. GRPO's, as omega says (test_equivalence.py), and its
value is 0 whatever the answers: a loss near 0 is no sign of trouble. To run it:
    python nft.py                                       # the toy: learns arithmetic on a CPU
    python nft.py --eval_only --model DIR --eval FILE   # avg@k and pass@k of any model
    NFT_FSDP=1 torchrun --nproc-per-node 8 nft.py --preset 7b       # Qwen2.5-Math-7B, on 8 GPUs
torchrun alone replicates the model; NFT_FSDP=1 shards it over all ranks, NFT_FSDP=N over N of them
(FSDP2); NFT_TP=N also splits its matrices over N. Every rank answers and trains on its share.
Glossary: q question, a answer, r verdict, r_hat mean of r over the K answers to q, logp log-prob of
a token under pi_theta+, logp_old under pi_old, omega weight of q, eps floor of R_neg, mask 1 on
answer tokens (EOS included); B answers, T tokens of the longest, V vocabulary.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers.distributed import DistributedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from verify import check_gold, extract_answer, grade

RANK, WORLD, TP, FSDP = (int(os.environ.get(name, default)) for name, default in
                         [("RANK", 0), ("WORLD_SIZE", 1), ("NFT_TP", 1), ("NFT_FSDP", 0)])

# ---------------------------------------------------------------- the method: tensors to tensors
def max_v(x: Tensor, eps: float) -> Tensor:
    """Eq 10's straight-through floor: the value of max(x, eps), the gradient of x. A plain maximum
    has no gradient below eps and halves it on the tie x = eps = 1, where on-policy steps start."""
    return x.clamp(min=eps).detach() + (x - x.detach())  # stop_gradient[max(x, eps) - x] + x

def prompt_weight(r_hat: Tensor, omega: str) -> Tensor:
    """omega(q) of Eq 10, shaped as r_hat; KeyError for an unknown name."""
    return {"one": torch.ones_like(r_hat), "dr_grpo": 1 - r_hat,
            "grpo": ((1 - r_hat) / r_hat).sqrt()}[omega]

def nft_loss(logp: Tensor, logp_old: Tensor, r: Tensor, r_hat: Tensor, mask: Tensor, *,
             omega: str = "dr_grpo", eps: float = 1.0, neg_weight: float = 1.0):
    """Eq 10, summed over tokens: the caller divides by the tokens of the whole optimiser step.
    logp, logp_old, mask (B, T); r, r_hat (B, 1), r_hat the mean verdict of the row's question.
    neg_weight scales the negative term: 1 is NFT, 0 is RFT. Returns loss_sum and, detached, stats
    (B, T): R, and whether the floor holds a token. Raises ValueError unless 0 < r_hat < 1."""
    if not ((r_hat > 0) & (r_hat < 1)).all():
        raise ValueError("nft_loss needs 0 < r_hat < 1: drop questions all right or all wrong")
    log_R = torch.where(mask > 0, logp - logp_old, 0.0)
    R = log_R.clamp(max=20).exp()  # e^20 at most: what follows stays finite
    R_neg = (1 - r_hat * R) / (1 - r_hat)
    ll = r * log_R + neg_weight * (1 - r) * max_v(R_neg, eps).log()
    loss = -prompt_weight(r_hat, omega) * ll * mask
    return loss.sum(), {"R": R.detach(), "floored": (1 - r) * (R_neg < eps).detach() * mask}

def grpo_loss(logp: Tensor, logp_old: Tensor, r: Tensor, r_hat: Tensor, mask: Tensor, *,
              clip_low: float = 0.2, clip_high: float = 0.2, std: bool = True):
    """GRPO's clipped surrogate, for contrast; arguments and result as nft_loss, any r_hat. std
    divides advantages by the *population* standard deviation of the verdicts: Dr. GRPO does not.
    DAPO is GRPO with clip_high = 0.28 and dynamic sampling."""
    R = torch.where(mask > 0, logp - logp_old, 0.0).clamp(max=20).exp()
    A = r - r_hat
    if std:
        A = A / (r_hat * (1 - r_hat)).sqrt().clamp(min=1e-6)  # 0 where verdicts agree
    free, clipped = R * A, R.clamp(1 - clip_low, 1 + clip_high) * A
    loss = -torch.minimum(free, clipped) * mask
    return loss.sum(), {"R": R.detach(), "floored": (clipped < free).detach() * mask}

ALGORITHMS = {  # --algo: loss, what it fixes of the loss's arguments, train on mixed questions only
    "nft": (nft_loss, {}, True),
    "rft": (nft_loss, {"neg_weight": 0.0}, True),
    "grpo": (grpo_loss, {"std": True}, False),
    "dr_grpo": (grpo_loss, {"std": False}, False),
    "dapo": (grpo_loss, {"std": True}, True),
}

# ---------------------------------------------------------------- configuration
class RunError(ValueError):
    """What one sentence explains (a wrong flag, file or model): `main` prints it and exits 1."""

def flag(default, help: str, *choices):
    return field(default=default, metadata={"help": help, "choices": choices or None})

@dataclass
class Config:
    """Defaults are the toy's; PRESETS says what the paper's runs change."""
    preset: str = flag("toy", "settings to start from", "toy", "7b", "32b")
    model: str = flag("toy/base", "Hugging Face model: a directory or a Hub id")
    train: str = flag("toy/train.jsonl", "questions: .jsonl, .json or .parquet, or HUB_ID[:SPLIT]")
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
    minibatches: int = flag(4, "optimiser steps an iteration; 1 is strictly on-policy")
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
    micro_tokens: int = flag(8192, "tokens of a micro-batch, padding included; bounds activations")
    checkpointing: bool = flag(False, "keep only the layers' inputs for backward: less memory")
    dtype: str = flag("float32", "bfloat16 keeps fp32 weights", "float32", "bfloat16", "float64")
    seed: int = flag(0, "of all randomness")

    def __post_init__(self):
        self.omega = self.omega or ("one" if self.algo == "rft" else "dr_grpo")
        kind = "eval" if self.eval_only else self.algo
        self.out = self.out or f"runs/{self.preset}-{kind}-{self.seed}"
        least = dict(K=2, eval_k=1, iterations=1, questions=1, minibatches=1, max_new=1, eps=1e-6,
                     lr=0, grad_clip=1e-6, save_every=1, temperature=.01, eval_temperature=0, seed=0)
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise RunError(f"--{name} is {getattr(self, name)}, it must be {low} or more")

PAPER = dict(
    train="hf://datasets/ChenDRAG/VeRL_math_validation/dapo-math-17k_10boxed.parquet",
    eval="math500=HuggingFaceH4/MATH-500:test,aime24=HuggingFaceH4/aime_2024:train",
    instruction="\nPlease reason step by step, and put your final answer within \\boxed{}.",
    iterations=320, questions=512, K=16, minibatches=16, lr=1e-6, warmup=10, eval_top_p=0.7,
    eval_every=20, sample_rows=256, micro_tokens=16384, checkpointing=True, dtype="bfloat16")
PRESETS = {
    "toy": {},
    "7b": PAPER | dict(model="Qwen/Qwen2.5-Math-7B", max_prompt=512, max_new=3584),
    "32b": PAPER | dict(model="Qwen/Qwen2.5-32B", max_prompt=2048, max_new=14336,
                        eval_temperature=0.6),
}

def parse_args(argv: list[str] | None) -> Config:
    """Flags over the preset's values over the defaults. Raises RunError, or exits as argparse."""
    parser = transformers.HfArgumentParser(Config, description=__doc__.split("\n")[0])
    parser.set_defaults(**PRESETS[parser.parse_known_args(argv)[0].preset])
    return Config(**vars(parser.parse_args(argv)))

# ---------------------------------------------------------------- model, on one process or many
def gather(share: list) -> list:
    """The shares of all ranks in one list, on every rank; NFT_TP ranks in a row have one share."""
    shares = [share] * WORLD
    if dist.is_initialized():
        dist.all_gather_object(shares, share)
    return [item for share in shares[::TP] for item in share]

@contextmanager
def gathered(model):
    """Whole weights on each rank: in here a forward pass of one rank waits for no other."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.to(model.dtype)  # as in `update`
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    yield
    for unit in units:
        unit.reshard()
        unit.set_reshard_after_forward(isinstance(unit, GradientCheckpointingLayer), recurse=False)

def load_model(cfg: Config):
    """Model, its list of EOS ids completed, and tokenizer; RunError if something is missing. Each
    rank reads its part of the weights only. `model.token_logps` is token_logps of that model."""
    dtype = torch.float64 if cfg.dtype == "float64" else torch.float32
    fsdp = WORLD // TP if FSDP == 1 else FSDP or 1
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(cfg.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            cfg.model, dtype=dtype, distributed_config=DistributedConfig(
                tp_size=TP, fsdp_size=fsdp, dp_replicate_size=WORLD // TP // fsdp,
                fsdp_mixed_precision=cfg.dtype == "bfloat16"))
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds
        raise RunError(f"--model {cfg.model}: {' '.join(str(error).split())}") from error
    eos = np.atleast_1d(model.generation_config.eos_token_id).tolist() + [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = sorted(set(eos) - {None})
    if not model.generation_config.eos_token_id or len(tokenizer) < 2:  # 1: transformers made it up
        raise RunError(f"--model {cfg.model}: no tokenizer, or no EOS in it or generation config")
    for module in model.to("cuda" if torch.cuda.is_available() else "cpu").modules():
        module.training = isinstance(module, GradientCheckpointingLayer)  # no dropout
    model.token_logps = token_logps.__get__(model)
    register_fsdp_forward_method(model, "token_logps")  # FSDP gathers weights in forward methods
    with torch.no_grad(), gathered(model):
        logp = model(torch.tensor([[0]], device=model.device)).logits[0, 0].log_softmax(-1)[1]
        if abs(logp - model.token_logps([[0]], [[1]])[0].item()) > 0.01:  # as in Gemma 2
            raise RunError(f"--model {cfg.model}: its logits are more than a matrix makes of states")
    return model, tokenizer

# ---------------------------------------------------------------- questions
@dataclass
class Question:
    prompt: list[dict] | str  # chat messages, or text
    answer: str
    tokens: list[int] = field(default_factory=list)  # the prompt as the model reads it

def load_questions(path: str, tokenizer=None, cfg: Config | None = None) -> list[Question]:
    """Questions of a .jsonl, .json or .parquet file, or of HUB_ID[:SPLIT]; RunError names the row.
    A gold answer may be bare, follow GSM8K's ####, or stand in the \\boxed{} of a worked solution.
    With a tokenizer: as tokens, and those above cfg.max_prompt dropped with a count."""
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(Path(path).suffix)
    name, split = (kind, "") if kind else path.partition(":")[::2]
    files, where, questions = {"data_files": path} if kind else {}, path, []
    try:
        for n, row in enumerate(datasets.load_dataset(name, split=split or "train", **files), 1):
            where, row = f"{path}, row {n}", row | (row.get("reward_model") or {})
            row = {column: value for column, value in row.items() if value is not None}
            prompt = next((row[c] for c in ("question", "problem", "prompt") if c in row), None)
            gold = next((row[c] for c in ("answer", "solution", "ground_truth") if c in row), None)
            if not prompt or gold is None:
                raise ValueError(f"no question or no answer among the columns {', '.join(row)}")
            gold = str(gold).split("####")[-1].strip()
            gold = extract_answer(gold) or "" if "\\boxed" in gold else gold
            check_gold(gold)
            tokens = encode(tokenizer, prompt, cfg.instruction) if tokenizer else []
            questions.append(Question(prompt, gold, tokens))
    except Exception as error:  # datasets raises many kinds, the reason is in the cause
        raise RunError(f"{where}: {error.__cause__ or str(error) or 'no rows'}") from error
    fit = [q for q in questions if not tokenizer or len(q.tokens) <= cfg.max_prompt]
    if len(fit) < len(questions):
        print(f"{path}: {len(questions) - len(fit)} questions dropped, longer than --max_prompt")
    if not fit:
        raise RunError(f"{path}: no question is left")
    return fit

def encode(tokenizer, prompt: list[dict] | str, instruction: str) -> list[int]:
    """Tokens of the prompt in the model's chat template, of the bare text where there is none."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt + instruction}]
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    return tokenizer("\n\n".join(message["content"] for message in prompt))["input_ids"]

# ---------------------------------------------------------------- scoring and sampling
def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    fp32 = torch.promote_types(logits.dtype, torch.float32)  # at least: bf16 is too coarse
    return (logits.to(fp32) / temperature).log_softmax(-1)

def token_logps(model, prompts: list[list[int]], answers: list[list[int]], *,
                temperature: float = 1.0, vocab: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probs of the answers' tokens by teacher forcing, and mask: both (B, T), 0 on padding.
    prompts, answers: B lists of token ids, none empty; ids from `vocab` on do not exist. Padding
    is on the right, where causal attention cannot see it, and known by length: pad may be EOS."""
    rows = list(zip(prompts, answers))
    ids = pad_sequence([torch.tensor(p + a) for p, a in rows], True).to(model.device)
    is_answer = pad_sequence([torch.arange(len(p + a)) >= len(p) for p, a in rows], True)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden, target = hidden[:, :-1][is_answer[:, 1:]], ids[is_answer]  # state t - 1 predicts t
    head = model.get_output_embeddings()

    def logp_of(hidden, target):
        logp = log_softmax(head(hidden)[:, :vocab], temperature)
        return logp.gather(-1, target[:, None])[:, 0]
    # a chunk of tokens at a time, made anew in backward: logits of all tokens are never held
    chunk = max(128, 2**21 // head.out_features)
    logp = torch.cat([torch.utils.checkpoint.checkpoint(logp_of, h, y, use_reentrant=False)
                      for h, y in zip(hidden.split(chunk), target.split(chunk))])
    logp = logp.split([len(a) for a in answers])
    return pad_sequence(logp, True), pad_sequence([torch.ones_like(row) for row in logp], True)

class Answer(NamedTuple):
    tokens: list[int]  # EOS included
    logps: list[float]  # of each token, under the distribution it was drawn from
    finished: bool  # ended by EOS, not cut at max_new

def pick(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw by inverse CDF from softmax(logits / temperature), or from its nucleus top_p: logits
    (B, V), u (B,) uniform in [0, 1) -> tokens, log-probs (B,). Temperature 0 is greedy."""
    logp = log_softmax(logits, max(temperature, 1e-6))
    if top_p < 1:
        logp = transformers.TopPLogitsWarper(top_p)(None, logp).log_softmax(-1)
    cdf = logp.exp().cumsum(-1)
    if not cdf[:, -1].isfinite().all():
        raise RunError("log-probs are not finite: the model's weights must be broken")
    token = torch.searchsorted(cdf, u.to(cdf)[:, None] * cdf[:, -1:], right=True)
    return token[:, 0], logp.gather(-1, token)[:, 0]

@torch.no_grad()
def sample(model, prompts: list[list[int]], K: int, max_new: int, *, eos_ids, temperature=1.0,
           top_p=1.0, seed=0, keys=None, vocab=None) -> list[Answer]:
    """K answers to each prompt, grouped by prompt: len(prompts) * K in all.
    The numbers answer k is drawn with depend on (seed, key of its prompt, k) alone: not on batch,
    order or process. `keys` are the prompts' positions unless given; `vocab` as in token_logps."""
    u = [np.random.default_rng([seed, key, k]).random(max_new, np.float32)
         for key in keys or range(len(prompts)) for k in range(K)]
    u = torch.from_numpy(np.stack(u)).to(model.device)
    eos, cache = torch.tensor(sorted(eos_ids), device=u.device), transformers.DynamicCache()
    tokens, logps = torch.zeros_like(u, dtype=torch.long), torch.zeros_like(u, dtype=torch.float64)
    length = tokens.new_zeros(len(u))  # 0 until EOS
    live = torch.arange(len(u), device=u.device)  # answers still in the batch

    def next_logits(ids, mask):  # read ids, the last columns of mask, into the cache: (B, V)
        position = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1]:]
        return model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True,
                     past_key_values=cache, logits_to_keep=1).logits[:, -1, :vocab]
    ids = [torch.tensor(p, device=u.device) for p in prompts]
    mask = pad_sequence([torch.ones_like(p) for p in ids], True, padding_side="left")
    ids = pad_sequence(ids, True, padding_side="left")  # all answers start in one column
    logits = next_logits(ids, mask)  # each prompt is read once
    logits, mask = logits.repeat_interleave(K, 0), mask.repeat_interleave(K, 0)
    cache.batch_repeat_interleave(K)
    for t in range(max_new):
        token, logp = pick(logits, u[live, t], temperature, top_p)
        tokens[live, t], logps[live, t] = token, logp.double()
        length[live[(length[live] == 0) & torch.isin(token, eos)]] = t + 1
        going = (length[live] == 0).nonzero()[:, 0]
        if len(going) == 0 or t + 1 == max_new:
            break
        if len(going) < 0.8 * len(live):  # dropping rows copies the cache: not at every step
            cache.batch_select_indices(going)
            live, token, mask = live[going], token[going], mask[going]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = next_logits(token[:, None], mask)
    return [Answer(row[:n or max_new], logp[:n or max_new], n > 0)
            for row, logp, n in zip(tokens.tolist(), logps.tolist(), length.tolist())]

# ---------------------------------------------------------------- Algorithm 1: collect, update
class Row(NamedTuple):  # a graded answer; the K of a question stand together
    q: Question
    a: Answer
    text: str
    r: float
    r_hat: float

def rollout(model, tokenizer, questions: list[Question], keys, K: int, cfg: Config, **how):
    """K rows for each question, sampled and graded by the ranks in parts; `how` goes to `sample`."""
    share, shares = RANK // TP, WORLD // TP
    mine = range(len(questions) * share // shares, len(questions) * (share + 1) // shares)
    rows, step = [], max(1, cfg.sample_rows // K)
    with gathered(model), torch.autocast(model.device.type, torch.bfloat16, cfg.dtype == "bfloat16"):
        for part in (mine[at:at + step] for at in range(0, len(mine), step)):
            answers = sample(model, [questions[i].tokens for i in part], K, cfg.max_new,
                             eos_ids=model.generation_config.eos_token_id, vocab=len(tokenizer),
                             keys=[keys[i] for i in part], **how)
            for n, i in enumerate(part):
                q, group = questions[i], answers[n * K:(n + 1) * K]
                texts = tokenizer.batch_decode([a.tokens for a in group], skip_special_tokens=True)
                r = [float(a.finished and grade(text, q.answer)) for a, text in zip(group, texts)]
                rows += [Row(q, *row, sum(r) / K) for row in zip(group, texts, r)]
    return gather(rows)

def collect(model, tokenizer, data: list[Question], cfg: Config, drawn: int, rounds: int = 10):
    """Lines 5-9: answer questions until cfg.questions are mixed -> rows to train on, metrics.
    drawn: questions drawn before, from an endless stream of shuffled passes over `data`."""
    began, mixed_only, rows, kept = time.time(), ALGORITHMS[cfg.algo][2], [], []
    for _ in range(rounds):
        share = max(len(kept), 1) / max(len(rows), 1)  # of mixed questions so far
        n = int(np.ceil((cfg.questions - len(kept) // cfg.K) / max(share, 0.3)))
        keys = range(drawn, drawn := drawn + n)
        passes = [np.random.default_rng([cfg.seed, i]).permutation(len(data))
                  for i in range(keys[0] // len(data), keys[-1] // len(data) + 1)]
        order = np.concatenate(passes)[keys[0] % len(data):][:n]
        rows += rollout(model, tokenizer, [data[i] for i in order], keys, cfg.K, cfg,
                        seed=2 * cfg.seed, temperature=cfg.temperature)
        kept = [row for row in rows if 0 < row.r_hat < 1 or not mixed_only][:cfg.questions * cfg.K]
        if len(kept) == cfg.questions * cfg.K:
            break
    tokens, acc = sum(len(row.a.tokens) for row in rows), np.mean([row.r for row in rows])
    if not kept:
        raise RunError(f"none of {len(rows) // cfg.K} questions in {rounds} rounds got both right "
                       f"and wrong answers (accuracy {acc:.1%}): there is nothing to learn from")
    return kept, dict(
        drawn=drawn, kept=len(kept) // cfg.K, acc=acc, r_hat=np.mean([row.r_hat for row in kept]),
        kept_frac=np.mean([0 < row.r_hat < 1 for row in rows]), length=tokens / len(rows),
        truncated_frac=np.mean([not row.a.finished for row in rows]),
        entropy=-sum(sum(row.a.logps) for row in rows) / tokens,  # E[-log p], tokens drawn from p
        sample_tokens_per_s=tokens / (time.time() - began), sample_seconds=time.time() - began)

def clip_gradient(model, max_norm: float) -> float:
    """Clip the gradient -> its norm before. With NFT_TP the parameters lie on two device meshes,
    which torch's clip_grad_norm_ cannot add up."""
    meshes: dict = {}
    for p in model.parameters():
        meshes.setdefault(getattr(p, "device_mesh", None), []).append(p)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part]) for part in meshes.values()]
    norm = torch.stack([n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]).norm()
    for part in meshes.values():
        torch.nn.utils.clip_grads_with_norm_(part, max_norm, norm)
    return norm.item()

def micro_batches(rows: list[Row], micro_tokens: int, world: int):
    """Longest first, micro_tokens with padding each -> (rows, weight), as many for each rank:
    ranks that make unequal numbers of passes would wait for each other for ever."""
    rows, parts = sorted(rows, key=lambda row: -len(row.q.tokens + row.a.tokens)), []
    while rows:
        n = max(1, micro_tokens // len(rows[0].q.tokens + rows[0].a.tokens))
        parts.append((rows[:n], 1.0))
        rows = rows[n:]
    return parts + [(parts[-1][0], 0.0)] * (-len(parts) % world)

def update(model, optimizer, rows: list[Row], cfg: Config, vocab: int) -> dict[str, float]:
    """Lines 10-16: one optimiser step on each minibatch of questions -> metrics. The loss is its
    sum over tokens / answer tokens of the minibatch, over all ranks. RunError before a step that
    is not finite."""
    began, log, norms, shares = time.time(), [], [], WORLD // TP
    loss_fn, fixed, _ = ALGORITHMS[cfg.algo]
    settings = {name: vars(cfg).get(name) for name in loss_fn.__kwdefaults__} | fixed

    def score(part):
        prompts, answers = [row.q.tokens for row in part], [row.a.tokens for row in part]
        with torch.autocast(model.device.type, BF16, cfg.dtype == "bfloat16"):
            return model.token_logps(prompts, answers, temperature=cfg.temperature, vocab=vocab)

    def sampled(part):  # the sampler's own log-probs
        logps = [torch.tensor(row.a.logps, dtype=torch.float32) for row in part]
        return pad_sequence(logps, True).to(model.device)
    size = cfg.K * int(np.ceil(len(rows) / cfg.K / cfg.minibatches))
    minibatches = [rows[at:at + size] for at in range(0, len(rows), size)]
    batches = [micro_batches(b, cfg.micro_tokens, shares)[RANK // TP::shares] for b in minibatches]
    with torch.no_grad():  # while the model is pi_old; in bf16 the sampler's are too rough
        old = [[score(part)[0] if cfg.dtype == "bfloat16" else sampled(part) for part, _ in batch]
               for batch in batches]
    if cfg.checkpointing:
        model.gradient_checkpointing_enable()
    for step, (minibatch, batch) in enumerate(zip(minibatches, batches)):
        n_tokens = sum(len(row.a.tokens) for row in minibatch)
        optimizer.zero_grad()
        for (part, weight), logp_old in zip(batch, old[step]):
            logp, mask = score(part)
            r, r_hat = logp.new_tensor([(row.r, row.r_hat) for row in part]).split(1, dim=1)
            loss_sum, stats = loss_fn(logp, logp_old, r, r_hat, mask, **settings)
            (loss_sum * weight * shares / n_tokens).backward()  # FSDP takes the mean
            gap = (logp.detach() - sampled(part)).abs().max().item() if step == 0 else 0.0
            log.append([weight * loss_sum.item(), weight * (stats["R"] * mask).sum().item(),
                        weight * stats["floored"].sum().item(), stats["R"].max().item(), gap])
        norms.append(clip_gradient(model, cfg.grad_clip))
        if not np.isfinite(norms[-1]):
            raise RunError(f"optimiser step {step + 1}: the gradient's norm is {norms[-1]}, at "
                           f"{minibatch[0].q.prompt!r:.200} and others; {cfg.out}/checkpoint is whole")
        optimizer.step()
        model.to(model.dtype)  # FSDP keeps a tied matrix twice, and its padding hides the step
    model.gradient_checkpointing_disable()
    log, tokens, seconds = np.array(gather(log)), sum(len(row.a.tokens) for row in rows), time.time() - began
    loss, R_mean, floored_frac = log[:, :3].sum(0) / tokens
    return dict(loss=loss, R_mean=R_mean, R_max=log[:, 3].max(), floored_frac=floored_frac,
                logp_gap=log[:, 4].max(), grad_norm=np.mean(norms),
                train_tokens_per_s=tokens / seconds, train_seconds=seconds)

# ---------------------------------------------------------------- evaluation, files, main
def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a file of JSON lines."""
    if RANK == 0:
        with path.open("a") as file:
            file.writelines(json.dumps(row, default=float) + "\n" for row in rows)

def append_samples(out: Path, rows: list[Row], **where) -> None:
    """Add rows as text, in the form `python verify.py` reads."""
    append(out / "samples.jsonl", [dict(**where, question=row.q.prompt, answer=row.q.answer,
                                        response=row.text, r=row.r) for row in rows])

def evaluate(model, tokenizer, sets: dict, cfg: Config, out: Path, iteration: int) -> None:
    """Print and log avg@k, the mean verdict, with its 95% bootstrap interval over questions, and
    pass@k, the share of questions got right once. sets: name -> questions, k."""
    for name, (questions, k) in sets.items():
        rows = rollout(model, tokenizer, questions, range(len(questions)), k, cfg,
                       seed=2 * cfg.seed + 1,  # never the numbers that training draws with
                       temperature=cfg.eval_temperature, top_p=cfg.eval_top_p)
        each = np.array([row.r_hat for row in rows[::k]])
        again = np.random.default_rng(0).choice(each, (2000, len(each))).mean(1)
        low, high = np.quantile(again, [0.025, 0.975])
        append(out / "eval.jsonl", [{
            "iteration": iteration, "name": name, "n": len(each), "k": k, "avg": each.mean(),
            "low": low, "high": high, "pass": (each > 0).mean()}])
        append_samples(out, rows if cfg.eval_only else rows[:32], iteration=iteration, set=name)
        if RANK == 0:
            tqdm.write(f"after iteration {iteration}: {name} avg@{k} {each.mean():.1%}, "
                       f"pass@{k} {(each > 0).mean():.1%} of {len(each)} questions")

def open_run(cfg: Config, model, optimizer) -> tuple[Path, int, int]:
    """The folder --out and where its run stands: iteration, questions drawn. Loads the checkpoint,
    if any, and drops rows written after it. RunError if the folder holds a run of other settings."""
    out, config = Path(cfg.out), asdict(cfg)
    old = json.loads(file.read_text()) if (file := out / "config.json").exists() else config
    other = {name for name in config if config[name] != old.get(name)}
    if other := sorted(other - {"out", "iterations", "save_every"}):  # these may change
        raise RunError(f"--out {out} holds a run of other {', '.join(other)}: give another --out")
    saved, state = sorted(out.glob("checkpoint/0*")), {"iteration": 0, "drawn": 0}
    if saved:
        state["model"], state["optimizer"] = get_state_dict(model, optimizer)
        dcp.load(state, checkpoint_id=saved[-1])
        set_state_dict(model, optimizer, model_state_dict=state["model"],
                       optim_state_dict=state["optimizer"])
    if RANK == 0:
        (out / "checkpoint").mkdir(parents=True, exist_ok=True)
        config |= {"torch": torch.__version__, "transformers": transformers.__version__,
                   "git": subprocess.getoutput(f"git -C '{Path(__file__).parent}' rev-parse HEAD")}
        replace(file, json.dumps(config, indent=1))
        for path in out.glob("*.jsonl"):  # a kill may have cut the last row
            lines = [line for line in path.read_text().splitlines(True) if line[-1] == "\n"]
            replace(path, "".join(line for line in lines if state["iteration"]
                                  and json.loads(line)["iteration"] <= state["iteration"]))
    return out, state["iteration"], state["drawn"]

def replace(path: Path, text: str) -> None:
    """Write aside, then rename: a kill, or another rank that reads, finds the old or the new."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)

def save(out: Path, model, optimizer, iteration: int, drawn: int) -> None:
    """Write checkpoint/ITERATION aside, then rename it. Two are kept. RunError if it cannot be."""
    part, (weights, moments) = out / "checkpoint/part", get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "iteration": iteration, "drawn": drawn}
    shutil.rmtree(part, ignore_errors=True)
    try:
        dcp.save(state, checkpoint_id=part)
    except dcp.api.CheckpointException as error:
        raise RunError(f"cannot write {part}: {list(error.failures.values())[0][0]}") from error
    if RANK == 0:
        part.rename(out / f"checkpoint/{iteration:06}")
        for old in sorted(out.glob("checkpoint/0*"))[:-2]:
            shutil.rmtree(old)

def report(out: Path) -> None:
    """Print the table of evaluations, with the mean of the sets, and draw curves.png."""
    evals = pd.read_json(out / "eval.jsonl", lines=True)
    print(evals.to_string(index=False, float_format="{:.3f}".format))
    print("mean of the sets:", evals.groupby("iteration").avg.mean().round(3).to_dict())
    if (out / "metrics.jsonl").exists():
        axes = pd.read_json(out / "metrics.jsonl", lines=True).plot(
            x="iteration", subplots=True, layout=(2, 3), figsize=(14, 7),
            y=["acc", "kept_frac", "entropy", "length", "R_max", "grad_norm"])
        evals = evals.pivot(index="iteration", columns="name", values=["avg", "pass"])
        evals.set_axis(evals.columns.map(" of ".join), axis=1).plot(ax=axes[0, 0], style="o--")
        axes[0, 0].figure.savefig(out / "curves.png", dpi=90, bbox_inches="tight")

def train(cfg: Config) -> None:
    """Algorithm 1, with an evaluation before, during and after it."""
    model, tokenizer = load_model(cfg)
    sets, stop = {}, []
    for part in cfg.eval.split(","):
        name, _, path = part.rpartition("=")
        name, _, k = (name or Path(path).stem).partition("@")
        sets[name] = load_questions(path, tokenizer, cfg), int(k or cfg.eval_k)
    data = [] if cfg.eval_only else load_questions(cfg.train, tokenizer, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=cfg.weight_decay)
    out, done, drawn = open_run(cfg, model, optimizer)
    if done == 0:
        evaluate(model, tokenizer, sets, cfg, out, iteration=0)
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))  # of a job to be preempted
    iterations = range(done + 1, 1 + (0 if cfg.eval_only else cfg.iterations))
    for iteration in (bar := tqdm(iterations, disable=RANK > 0)):
        began, lr = time.time(), cfg.lr * min(1, iteration / max(1, cfg.warmup))
        for group in optimizer.param_groups:
            group["lr"] = lr
        rows, metrics = collect(model, tokenizer, data, cfg, drawn)
        metrics |= update(model, optimizer, rows, cfg, len(tokenizer))  # the new model is pi_old
        metrics = {"iteration": iteration, **metrics, "lr": lr, "seconds": time.time() - began}
        append(out / "metrics.jsonl", [metrics])
        append_samples(out, rows[:4], iteration=iteration, set="train")
        bar.set_postfix({name: f"{metrics[name]:.3g}" for name in
                         ("acc", "kept_frac", "entropy", "sample_tokens_per_s")})
        drawn, last = metrics["drawn"], iteration == cfg.iterations
        if last or cfg.eval_every and iteration % cfg.eval_every == 0:
            evaluate(model, tokenizer, sets, cfg, out, iteration)
        if (stopped := any(gather([bool(stop)]))) or last or iteration % cfg.save_every == 0:
            save(out, model, optimizer, iteration, drawn)
        if stopped:
            return print(f"stopped by SIGTERM after iteration {iteration}: saved")
    if not cfg.eval_only:
        model.save_pretrained(out / "final")
    if RANK == 0:
        tokenizer.save_pretrained(out / "final")
        report(out)

def main(argv: list[str] | None = None) -> None:
    """Run the flags; what one sentence explains ends in that sentence and exit status 1."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        train(parse_args(argv))
    except (RunError, OSError) as error:  # OSError: a full disk, a folder that cannot be made
        sys.exit(f"nft.py: {error}")

if __name__ == "__main__":
    main()

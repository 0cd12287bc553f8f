r"""Make the toy: `python toy/make.py` writes toy/base/ and toy/train, test and hard.jsonl.

The task is arithmetic of 2 to 4 operations on small integers, fractions and decimals. The base is
a Qwen2 of 0.8M parameters, one token a byte, pretrained to imitate three kinds of solvers:

    Find (9+1)/4*3.
    careful    =10/4*3=5/2*3=15/2 \boxed{\frac{15}{2}}    an operation a step, each done right
    careless   =10/4*3=5/2*3=17/2 \boxed{17/2}            the same, but each may go wrong (SLIP)
    guess      \boxed{14/4}                               at once, near the answer, mostly wrong

First 80% of the steps are a textbook, careful solvers only, then comes the MIXTURE: so the base can
work a question out, but mostly does not. Everyone boxes an answer, in many forms (5/2, 2.5, 10/4,
\frac52), and ends: what RL can gain is to work step by step, and to do each step right.

On toy/test.jsonl at temperature 1 the base has an avg of 0.35 and a pass@16 of 0.97, and 91% of
the questions are mixed at K = 8. 60% of its answers go step by step, 57% of those are right; the
others guess, 2% are right. The mean answer is 21 tokens, 0.4% run into max_new 64. Greedy, and made
to start a step, it gets 95%: the skill is there. It takes 11 minutes to make on one core (22 on a
busy machine).

toy/hard.jsonl has questions of 5 operations, more than the base has ever seen. toy/small/ is the
base of `python toy/make.py --hidden 64 --out DIR`: 0.2M parameters, avg 0.31, pass@16 0.94. The
same machine and version of PyTorch give the same bytes (one thread, seeded; checked by two runs);
another machine gives another base of about the same figures, so re-made files differ from the
committed ones.
"""
import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

TOY = Path(__file__).resolve().parent
sys.path.insert(0, str(TOY.parent))
import nft  # noqa: E402
from verify import grade  # noqa: E402

PHRASES = ["{}=?", "What is {}?", "Find {}."]
MIXTURE = {"careful": 0.25, "careless": 0.35, "guess": 0.40}  # solvers of the second part
SLIP = 0.2  # a careless solver's chance of error in an operation
TEXTBOOK = 0.8  # of the steps: careful solvers only
LONGEST = 64  # characters of a careful answer, \boxed counted as six
BATCH = 32
LR = 3e-3

# ---------------------------------------------------------------- questions
# A number is (numerator, denominator) as written, so not always in lowest terms; over 10 or 100 it
# is written as a decimal. An expression is a number or (operation, left, right).
def is_number(tree) -> bool:
    return isinstance(tree[0], int)


def show(tree, outer: str = "", right: bool = False) -> str:
    """An expression as text, with brackets where precedence or grouping asks for them."""
    if is_number(tree):
        n, d = tree
        text = str(n) if d == 1 else f"{n / d:g}" if d in (10, 100) else f"{n}/{d}"
        return f"({text})" if right and n < 0 else text
    op, a, b = tree
    rank = {"": 0, "+": 1, "-": 1, "*": 2, "/": 2}
    text = show(a, op) + op + show(b, op, True)
    return f"({text})" if rank[op] < rank[outer] + right else text


def reduced(number):
    """A fraction in lowest terms, a decimal without trailing zeros."""
    n, d = number
    while n % 10 == d % 10 == 0:
        n, d = n // 10, d // 10
    g = 1 if d in (10, 100) else math.gcd(n, d)
    return n // g, d // g


def work_out(op: str, a, b) -> list:
    """The forms that `a op b` goes through: over a common denominator, done, in lowest terms."""
    if op == "*":
        done = [(a[0] * b[0], a[1] * b[1])]
    elif op == "/":
        done = [(a[0] * b[1], a[1] * b[0])]
    else:
        d = math.lcm(a[1], b[1])
        x, y = a[0] * d // a[1], b[0] * d // b[1]
        done = [(op, (x, d), (y, d)), (x + y if op == "+" else x - y, d)]
    return done + [reduced(done[-1])]


def result(tree):
    """The number that an expression comes to."""
    return tree if is_number(tree) else work_out(tree[0], result(tree[1]), result(tree[2]))[-1]


def fits(tree) -> bool:
    """Whether a model this small can be expected to do each operation of an expression."""
    if is_number(tree):
        return True
    op, a, b = tree
    if not (fits(a) and fits(b)):
        return False
    (x, over), (y, _), (n, d) = result(a), result(b), result(tree)
    if op == "*" and max(x, y) > 12 or op == "/" and over > 1:
        return False
    return 0 <= n < 100 and (d == 10 or 12 % d == 0)


def random_number(rng, kind: str):
    if kind == "integer" or rng.random() < 0.3:
        return rng.randint(1, 9), 1
    if kind == "decimal":
        return reduced((rng.randint(1, 49), 10))
    d = rng.choice([2, 3, 4, 6])
    return reduced((rng.randint(1, d - 1), d))


def random_tree(rng, operations: int, kind: str):
    if operations == 0:
        return random_number(rng, kind)
    left = rng.choice([operations - 1, operations - 1, rng.randrange(operations)])
    a, b = random_tree(rng, left, kind), random_tree(rng, operations - 1 - left, kind)
    if is_number(b) and not is_number(a) and kind != "decimal" and rng.random() < 0.2:
        return "/", a, (rng.randint(2, 6), 1)  # division by a small integer only
    return rng.choice("++--*"), a, b


def random_question(rng, operations: int, longest: int = LONGEST):
    """(question, expression): one whose careful answer has at most `longest` characters."""
    kind = rng.choice(["integer", "integer", "fraction", "decimal"])
    while True:
        tree = random_tree(rng, operations, kind)
        if fits(tree) and len(solve(rng, tree, "careful")) <= longest:
            return rng.choice(PHRASES).format(show(tree)), tree


def write_questions(path: Path, rng, n: int, operations: list[int], taken: set[str], **how) -> None:
    """Write n questions whose expressions are not in `taken`, and add these to it."""
    with open(path, "w") as file:
        while n:
            question, tree = random_question(rng, rng.choice(operations), **how)
            if show(tree) not in taken:
                taken.add(show(tree))
                row = {"question": question, "answer": show(result(tree))}
                file.write(json.dumps(row) + "\n")
                n -= 1


# ---------------------------------------------------------------- solvers
def slip(rng, op: str, a, b):
    """A plausible wrong result of `a op b`: of another operation, or a little off."""
    right = result((op, a, b))
    while True:
        n, d = right
        if rng.random() < 0.3:
            n, d = result((rng.choice("+-*"), a, b))
        else:
            n += rng.choice([-10, -2, -1, -1, 1, 1, 2, 10])
        if reduced((n, d)) != right and n * (right[0] or 1) > 0:
            return reduced((n, d))


def step(rng, tree, p_slip: float) -> list:
    """What a solver writes to do the first operation of an expression."""
    op, a, b = tree
    if not is_number(a):
        return [(op, x, b) for x in step(rng, a, p_slip)]
    if not is_number(b):
        return [(op, a, x) for x in step(rng, b, p_slip)]
    return [slip(rng, op, a, b)] if rng.random() < p_slip else work_out(op, a, b)


def box(rng, number) -> str:
    """A final answer, in one of the forms that solvers use."""
    n, d = number
    sign, m, k = "-" * (n < 0), abs(n), rng.choice([2, 3])
    forms = [show(number)] * 4
    if d == 1:
        forms += [f"{n}.0"]
    else:
        forms += [f"{sign}\\frac{{{m}}}{{{d}}}"] * 2
        forms += [f"{sign}\\frac{m}{d}"] if max(m, d) < 10 else []
        forms += [f"{n * k}/{d * k}"] if max(m, d) * k < 40 else []
        forms += [f"{n / d:g}"] if d in (2, 4) else []
    return f"\\boxed{{{rng.choice(forms)}}}"


def solve(rng, tree, solver: str) -> str:
    """One answer of one solver, as in the docstring above."""
    if solver == "guess":
        n, d = result(tree)
        near = rng.choice([-10, -5, -3, -2, -1, 1, 2, 3, 5, 10])
        return box(rng, (n + near * (rng.random() < 0.9), d))
    lines = [show(tree)]
    while not is_number(tree):
        for tree in step(rng, tree, SLIP if solver == "careless" else 0.0):
            lines += [show(tree)] if show(tree) != lines[-1] else []
    return "".join("=" + line for line in lines[1:]) + " " + box(rng, tree)


# ---------------------------------------------------------------- tokenizer and model
def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's without merges: one token a byte, but one for \\boxed and one for \\frac.

    pad = eos, as in many a real model: a trainer that masks by id would never train the end.
    """
    end, *roles = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
    vocab = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], unk_token=None, eos_token=end, pad_token=end,
        additional_special_tokens=roles, model_max_length=512,
    )
    tokenizer.add_tokens(["\\boxed", "\\frac"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    return tokenizer


def make_model(tokenizer, hidden: int, layers: int) -> Qwen2ForCausalLM:
    end = tokenizer.eos_token_id
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=None, eos_token_id=end, pad_token_id=end,
    ))


# ---------------------------------------------------------------- pretraining
def examples(rng, tokenizer, n: int, mixture: dict[str, float], taken: set[str]) -> list:
    """n pairs (token ids, length of the prompt), sorted by length."""
    rows = []
    while len(rows) < n:
        question, tree = random_question(rng, rng.choice([1, 2, 2, 3, 3, 4]))
        if show(tree) in taken:
            continue
        solver, = rng.choices(list(mixture), list(mixture.values()))
        prompt = nft.encode(tokenizer, question, instruction="")
        answer = solve(rng, tree, solver) + tokenizer.eos_token
        rows.append((prompt + tokenizer.encode(answer), len(prompt)))
    return sorted(rows, key=lambda row: len(row[0]))


def batches(rng, tokenizer, steps: int, taken: set[str]):
    """Batches (ids, labels) of examples of about one length; answer and end are the labels."""
    pool = []
    for i in range(steps):
        if not pool:
            mixture = {"careful": 1.0} if i < TEXTBOOK * steps else MIXTURE
            rows = examples(rng, tokenizer, 16 * BATCH, mixture, taken)
            pool = [rows[j:j + BATCH] for j in range(0, len(rows), BATCH)]
            rng.shuffle(pool)
        rows = pool.pop()
        ids = torch.zeros(BATCH, len(rows[-1][0]), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (tokens, start) in enumerate(rows):
            ids[row, :len(tokens)] = torch.tensor(tokens)
            labels[row, start:len(tokens)] = ids[row, start:len(tokens)]
        yield ids, labels


def pretrain(model, data, steps: int) -> None:
    """Muon on matrices (trial: loss 0.23 at step 600; AdamW alone: 0.51), AdamW on the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=LR, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    start = time.time()
    for i, (ids, labels) in enumerate(data):
        for group in optimizers[0].param_groups + optimizers[1].param_groups:
            group["lr"] = LR * min((i + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * i / steps))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        (loss / (20 * BATCH)).backward()  # a constant: a mean would favour batches of short answers
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if i % 100 == 0:
            mean = loss.item() / (labels >= 0).sum()
            print(f"step {i} of {steps}: loss {mean:.3f}, {time.time() - start:.0f} s", flush=True)


def measure(model, tokenizer, path: Path, K: int = 16) -> str:
    """avg and pass@K of the model at temperature 1, by the project's own sampler and verifier."""
    rows = [json.loads(line) for line in open(path)]
    prompts = [nft.encode(tokenizer, row["question"], instruction="") for row in rows]
    answers = nft.sample(model, prompts, K, LONGEST, eos_ids=[tokenizer.eos_token_id])
    r = torch.tensor([
        a.finished and grade(tokenizer.decode(a.tokens), rows[i // K]["answer"])
        for i, a in enumerate(answers)
    ]).float().view(-1, K)
    return f"avg {r.mean():.3f}, pass@{K} {r.amax(1).mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TOY, help="folder to write to")
    parser.add_argument("--steps", type=int, default=3600, help="of pretraining")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the bytes depend on it, and a busy machine is slow with more
    torch.use_deterministic_algorithms(True)
    rng, taken = random.Random(args.seed), set()
    args.out.mkdir(parents=True, exist_ok=True)
    write_questions(args.out / "test.jsonl", rng, 200, [2, 3, 4], taken)
    write_questions(args.out / "train.jsonl", rng, 2400, [2, 3, 4], taken)
    write_questions(args.out / "hard.jsonl", random.Random(args.seed), 200, [5], set(), longest=96)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, args.hidden, args.layers)
    pretrain(model, batches(rng, tokenizer, args.steps, taken), args.steps)
    model.eval()
    model.save_pretrained(args.out / "base")
    tokenizer.save_pretrained(args.out / "base")
    print(measure(model, tokenizer, args.out / "test.jsonl"))


if __name__ == "__main__":
    main()

r"""A plan before a bill: what a run of nft.py asks of a cluster, computed from its flags alone.

    python toy/plan.py --preset 7b --gpus 8              # no weights, no GPU, no network
    python toy/plan.py --preset 32b --gpus 16 --tp 8 --sample_rows 48
    python toy/plan.py --table                           # the README's table

It takes the flags of nft.py and its own (--help). Nothing is measured: each figure is a formula.
GB = 1e9 bytes; N parameters, P those in a rank's shards (counted on the shards that transformers
and FSDP2 make of the model on the meta device, for ranks that do not exist), L layers, h hidden
size, a heads * head_dim, k kv_heads * head_dim, f width of the MLP, V vocabulary; dense decoders.

Bytes a rank holds: these always, and one of the three below them,
  weights 4 P (fp32), gradients 4 P (fp32, kept until the next zero_grad), AdamW's moments 8 P,
  --reserve for CUDA, NCCL and fragments of the allocator
sampling
  bf16 weights gathered over FSDP, not over TP: 2 N / tp
  keys and values 4 L k / tp a token, at worst sample_rows answers of max_prompt + max_new tokens,
  and one layer's again, while copied to grow; logits 28 V a row: bf16, and fp32 for top_p.
  Ended answers leave after each block of 128 tokens, so if lengths are as below far less is held,
  at the fullest moment the maximum over t of exp(-(t - 128) / mean_new) (max_prompt + t) an answer.
  What fits only then is said to fit "if short": it does not if too many answers ramble on
training, on a micro-batch of T = max(micro_tokens, max_prompt + max_new) tokens
  inputs of all layers 2 h L T; (10 h + (4 a + 4 k + 14 f) / tp) T in the layer that is recomputed
  and in backward; logits 18 V a token of a chunk
  gathered: 6 a parameter of a layer (bf16 weights of it and of the next one, bf16 gradients), and 4
  a parameter of the head (its gradients in fp32, on their way to the shards)
step: 4 P, the square root in AdamW's foreach form

Work of an iteration: questions / kept_frac are drawn, with K answers each, of lengths exponential
about mean_new and cut at max_new; questions * K answers are trained on.
  FLOPs: 2 for a token and a parameter it is multiplied by (all but the embedding), 4 L a for a pair
  of tokens in attention; 4 times that in training (backward is 2, recomputing 1), and once more
  for the old log-probs. Both run at mfu of the peak, what is recomputed included. A minibatch makes
  tokens / T micro-batches, and ranks for which the last round of these has none left wait.
  Decoding: a rank takes its share in batches of sample_rows and a small one for the questions that
  are then missing. A batch lasts max_new steps, as its longest answer nearly does. A step moves
  2 N / tp bytes of weights and the keys and values of answers not yet ended at sample_util of the
  bandwidth, and takes layer_us a layer at least: its many small kernels, replayed as a CUDA graph
  (toy/bench.py on an H200, 128 rows: 245 us for 1.5B), or with --tp, where nothing is recorded,
  the Python that launches them one by one (1026 us for 7B).
Not counted: grading, evaluations, checkpoints, gathering, padding, unequal lengths over ranks.
"""
import argparse
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import transformers
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import DistributedConfig
from transformers.initialization import no_tie_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import nft  # noqa: E402

CONFIGS = {  # of the presets' models, so that no network is needed
    "Qwen/Qwen2.5-Math-7B": dict(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4),
    "Qwen/Qwen2.5-32B": dict(
        vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8),
}
GPUS = {  # data sheets: GB of memory, dense bf16 FLOPs and bytes of memory a second
    "H100": (80, 989e12, 3.35e12), "H200": (141, 989e12, 4.8e12),
    "MI300X": (192, 1307e12, 5.3e12), "B200": (192, 2250e12, 8.0e12),
}
SIZES = sorted({size for size, _, _ in GPUS.values()})
ITERATIONS = 320  # as in the paper
TABLE = [  # preset, GPUs, TP
    ("7b", 8, 1), ("7b", 32, 1), ("7b", 64, 1), ("32b", 16, 8), ("32b", 64, 8), ("32b", 128, 8)]

def model_config(name: str):
    """Configuration of a preset's model, or of a directory, json file or Hub id."""
    if name in CONFIGS:
        return transformers.Qwen2Config(**CONFIGS[name])
    return transformers.AutoConfig.from_pretrained(name)

def shapes(config, tp: int = 1, fsdp: int = 1, replicas: int = 1) -> SimpleNamespace:
    """The letters of the docstring, and parameters: `total`, N; `local`, P, of rank 0, which has
    most; `matrices`, those each token is multiplied by; and what a rank has of the model, a layer
    and the head once FSDP has gathered them: `gathered`, `layer`, `head`."""
    dist.init_process_group("fake", rank=0, world_size=tp * fsdp * replicas, store=FakeStore())
    try:  # the steps of from_pretrained, short of loading
        with torch.device("meta"), no_tie_weights():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        layout = DistributedConfig(tp_size=tp, fsdp_size=fsdp, dp_replicate_size=replicas)
        mesh = model.prepare_distribute_model(layout)[-1]
        model = model.maybe_distribute_model(model, layout, mesh)
        model.tie_weights()
    finally:
        dist.destroy_process_group()

    def whole(p) -> int:  # elements once gathered over FSDP: TP's is the last dimension of a mesh
        axes = p.device_mesh.mesh_dim_names if hasattr(p, "device_mesh") else ()
        return p.numel() // (tp if "tp" in axes and p.placements[-1].is_shard() else 1)
    weights = list(model.parameters())  # a tied embedding is there once, and multiplies
    total, looked_up = sum(p.numel() for p in weights), model.get_input_embeddings().weight.numel()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return SimpleNamespace(
        total=total, matrices=total - (0 if config.tie_word_embeddings else looked_up),
        local=sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in weights),
        gathered=sum(map(whole, weights)), head=whole(model.get_output_embeddings().weight),
        layer=sum(map(whole, model.base_model.layers[0].parameters())),
        tp=tp, L=config.num_hidden_layers, h=config.hidden_size, a=heads * head_dim,
        k=kv_heads * head_dim, f=config.intermediate_size, V=config.vocab_size)

def state_bytes(local: int) -> dict[str, int]:
    """What a rank always holds of the model, from the number of parameters in its shards."""
    return {"weights": 4 * local, "gradients": 4 * local, "AdamW's moments": 8 * local}

def mean_new(cfg: nft.Config, args: argparse.Namespace) -> float:
    return args.mean_new or cfg.max_new / 4

def held_tokens(cfg: nft.Config, args: argparse.Namespace, block: int = 128) -> float:
    """Tokens in the cache at its fullest, for each answer that sampling began with; block as
    nft.BLOCK on a GPU."""
    mean = mean_new(cfg, args)
    return max(math.exp(-max(0, t - block) / mean) * (cfg.max_prompt + t)
               for t in range(cfg.max_new))

def phase_bytes(cfg: nft.Config, s: SimpleNamespace, rows: int, held: float | None = None):
    """What a rank holds besides, by phase, with `rows` answers side by side in sampling, of `held`
    tokens each in the cache at its fullest, by default the most that there can be."""
    longest, chunk = cfg.max_prompt + cfg.max_new, 512  # as in nft.token_logps
    T = max(cfg.micro_tokens, longest)
    return {
        "sampling": {"gathered": 2 * s.gathered, "logits": rows * 28 * s.V,
                     "keys and values": rows * (held or longest) * 4 * (s.L + 1) * s.k / s.tp},
        "training": {"gathered": 6 * s.layer + 4 * s.head, "logits": chunk * 18 * s.V,
                     "inputs of layers": 2 * s.h * s.L * T,
                     "one layer": (10 * s.h + (4 * s.a + 4 * s.k + 14 * s.f) / s.tp) * T},
        "step": {"square root": 4 * s.local}}

def work(cfg: nft.Config, args: argparse.Namespace, s: SimpleNamespace, ranks: int, rows: int):
    """An iteration's tokens sampled and trained on; its FLOPs in reading prompts, decoding and
    training; the share of ranks at work in training; and, of each data-parallel rank, the steps of
    decoding and the bytes they move in its memory."""
    prompt, new = min(args.mean_prompt, cfg.max_prompt), mean_new(cfg, args)
    answers, trained = cfg.questions / args.kept_frac * cfg.K, cfg.questions * cfg.K
    # pairs of tokens within a prompt and from an answer on: E[new^2] is 2 new^2 if exponential
    within, after = prompt**2 / 2, prompt * new + min(new, cfg.max_new / 2) * new

    def forward(tokens, pairs):
        return 2 * s.matrices * tokens + 4 * s.L * s.a * pairs
    micro = (trained * (prompt + new) / cfg.minibatches
             / max(cfg.micro_tokens, cfg.max_prompt + cfg.max_new))  # micro-batches of a minibatch
    steps = cfg.max_new * (math.ceil(answers / ranks / rows) + 1)
    return ((answers * new, trained * new),
            (answers / cfg.K * forward(prompt, within), answers * forward(new, after),
             5 * trained * forward(prompt + new, within + after)),
            micro / ranks / math.ceil(micro / ranks), steps,
            steps * 2 * s.gathered + answers / ranks * after * 4 * s.L * s.k / s.tp)

def plan(cfg: nft.Config, args: argparse.Namespace, gpus: int, tp: int) -> dict[str, str]:
    """Label -> figure: a column of the table. Raises RunError if the layout is impossible."""
    config = model_config(cfg.model)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    ranks, fsdp = gpus // tp, args.fsdp or max(1, gpus // tp)  # data-parallel; that share a copy
    if gpus % tp or ranks % fsdp or heads % tp or kv_heads % tp:
        raise nft.RunError(f"--tp {tp} must divide {gpus} GPUs, {heads} heads and {kv_heads} key "
                           f"and value heads, and --fsdp {fsdp} the {ranks} ranks that are left")
    s, rows = shapes(config, tp, fsdp, ranks // fsdp), max(1, cfg.sample_rows // cfg.K) * cfg.K
    always = state_bytes(s.local) | {"reserve": args.reserve * 1e9}
    phases, if_short = (phase_bytes(cfg, s, rows, n) for n in (None, held_tokens(cfg, args)))
    held = sum(always.values())
    peaks, less = ({phase: held + sum(parts.values()) for phase, parts in each.items()}
                   for each in (phases, if_short))
    fits = {size: "yes" if max(peaks.values()) <= size * 1e9 else
            "if short" if max(less.values()) <= size * 1e9 else "no" for size in SIZES}

    def fitting(tokens: float | None) -> str:
        none, one = (held + sum(phase_bytes(cfg, s, n, tokens)["sampling"].values())
                     for n in (0, cfg.K))
        return ", ".join(str(max(0, int((size * 1e9 - none) / (one - none))) * cfg.K)
                         for size in SIZES)
    tokens, (reading, decoding, training), busy, steps, moved = work(cfg, args, s, ranks, rows)
    launching = steps * s.L * (args.layer_us or (250 if tp == 1 else 1000)) / 1e6

    lines = {"TP x FSDP": f"{tp} x {fsdp}",
             "sample_rows, micro_tokens": f"{rows}, {cfg.micro_tokens}"}
    for phase, parts in {"always": always, **phases}.items():
        lines |= {f"GB {phase}: {what}": f"{size / 1e9:.1f}" for what, size in parts.items()}
    lines |= {f"GB at the peak of {phase}": f"{size / 1e9:.1f}" for phase, size in peaks.items()}
    sizes = ", ".join(map(str, SIZES))
    lines |= {
        f"fits {sizes} GB": ", ".join(fits.values()),
        f"sample_rows that fit {sizes} GB": fitting(None),
        "the same if answers are short": fitting(held_tokens(cfg, args)),
        "M tokens sampled, trained on": ", ".join(f"{n / 1e6:.1f}" for n in tokens),
        "share of ranks at work in training": f"{busy:.0%}",
        "FLOPs of sampling, training": f"{reading + decoding:.1e}, {training:.1e}"}
    for gpu, (size, flops, bandwidth) in GPUS.items():
        flops *= gpus * args.mfu
        decode = max(moved / bandwidth / args.sample_util, launching)
        sample, train = decode + reading / flops, training / flops / busy
        hours = f"{ITERATIONS * (sample + train) / 3600:.0f} ({sample:.0f} + {train:.0f})"
        lines[f"hours on {gpu} (s sampling + training)"] = hours if fits[size] != "no" else "-"
    return lines

def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     epilog="and all flags of nft.py: see its --help")
    add = parser.add_argument
    add("--gpus", type=int, default=8, help="ranks in all, one on each GPU")
    add("--tp", type=int, default=1, help="ranks of a tensor-parallel group (NFT_TP)")
    add("--fsdp", type=int, help="ranks that share one copy (NFT_FSDP); default all, GPUS / TP")
    add("--mean_prompt", type=float, default=150, help="tokens of a prompt")
    add("--mean_new", type=float, help="tokens of an answer; default max_new / 4")
    add("--kept_frac", type=float, default=0.5, help="share of drawn questions that are mixed")
    add("--mfu", type=float, default=0.35, help="share of peak FLOPs in training")
    add("--sample_util", type=float, default=0.3, help="share of peak bandwidth in decoding")
    add("--layer_us", type=float,
        help="least microseconds of a layer in decoding; default 250, with --tp 1000")
    add("--reserve", type=float, default=5, help="GB for CUDA, NCCL and fragments")
    add("--table", action="store_true", help="the README's table: 7b and 32b on many GPUs")
    args, flags = parser.parse_known_args(argv)
    runs = TABLE if args.table else [(None, args.gpus, args.tp)]
    try:
        cfgs = [nft.parse_args(flags + ["--preset", preset] * bool(preset)) for preset, *_ in runs]
        columns = [plan(cfg, args, gpus, tp) for cfg, (_, gpus, tp) in zip(cfgs, runs)]
    except (nft.RunError, OSError) as error:  # OSError: no such model
        sys.exit(f"plan.py: {' '.join(str(error).split())}")
    names = [f"{preset or cfg.model}, {gpus} GPUs" for cfg, (preset, gpus, _) in zip(cfgs, runs)]
    print("Computed, not measured: GB (1e9 bytes) a rank; tokens, FLOPs and seconds an iteration;\n"
          f"hours for {ITERATIONS} of them; training: {args.mfu:.0%} of the GPUs' FLOPs,\n"
          f"decode: {args.sample_util:.0%} of their bandwidth, --layer_us a layer at least.\n")
    rows = [["", *names], ["---"] * (len(runs) + 1)]
    rows += [[label, *(column[label] for column in columns)] for label in columns[0]]
    for label, *figures in rows:
        print(" | ".join([f"| {label:39}", *(f"{figure:>19}" for figure in figures)]) + " |")

if __name__ == "__main__":
    main()

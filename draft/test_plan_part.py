"""toy/plan.py: its figures of weights, gradients and optimiser are what two real ranks hold."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path("/work/main")  # in the repository: Path(__file__).resolve().parent
PLAN = Path("/work/s5/plan.py")  # in the repository: ROOT / "toy/plan.py"
sys.path.insert(0, str(ROOT))
spec = importlib.util.spec_from_file_location("plan", PLAN)
plan = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plan)

WORKER = """
import json, sys, torch, transformers
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

def local_bytes(tensors):
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)

for tp, fsdp in json.loads(sys.argv[2]):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32,
        distributed_config=DistributedConfig(tp_size=tp, fsdp_size=fsdp, fsdp_mixed_precision=True))
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights)
    model(torch.arange(10)[None]).logits.float().square().mean().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    print("HELD", json.dumps([tp, fsdp, {
        "weights": local_bytes(weights), "gradients": local_bytes([p.grad for p in weights]),
        "AdamW's moments": local_bytes(moments)}]), flush=True)
torch.distributed.destroy_process_group()
"""


def test_a_plan_says_what_two_real_ranks_hold(tmp_path):
    """Sharded by FSDP and by tensor parallelism, after a step: not a byte more or less, up to the
    padding of shards. The toy's 262 rows of embedding halve, so here there is none."""
    (tmp_path / "worker.py").write_text(WORKER)
    layouts, base = [(1, 2), (2, 1)], ROOT / "toy/base"
    out = subprocess.run(
        ["torchrun", "--standalone", "--nproc-per-node", "2", str(tmp_path / "worker.py"),
         str(base), json.dumps(layouts)], text=True, capture_output=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1",
                          "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    assert out.returncode == 0, out.stderr
    rows = [json.loads(line.split("HELD")[1]) for line in out.stdout.splitlines()
            if "HELD" in line]
    assert len(rows) == 2 * len(layouts)
    for tp, fsdp, held in rows:
        s = plan.shapes(transformers.AutoConfig.from_pretrained(base), tp, fsdp)
        assert held == plan.state_bytes(s.local), (tp, fsdp)


def test_uneven_shards_are_counted_with_their_padding():
    """262 rows of embedding over 8 ranks are 33 rows on the first; all else divides."""
    config = transformers.AutoConfig.from_pretrained(ROOT / "toy/base")
    whole, eighth = plan.shapes(config), plan.shapes(config, fsdp=8)
    assert 8 * eighth.local - whole.total == (8 * 33 - 262) * config.hidden_size
    assert eighth.gathered == whole.total == whole.local == whole.matrices  # a tied embedding


@pytest.mark.parametrize("name, total, tp, fsdp", [
    ("Qwen/Qwen2.5-Math-7B", 7_615_616_512, 1, 8), ("Qwen/Qwen2.5-Math-7B", 7_615_616_512, 4, 16),
    ("Qwen/Qwen2.5-32B", 32_763_876_352, 2, 8), ("Qwen/Qwen2.5-32B", 32_763_876_352, 8, 16)])
def test_the_models_of_the_paper_are_counted_in_full(name, total, tp, fsdp):
    s = plan.shapes(plan.model_config(name), tp, fsdp)
    assert s.total == total
    norms = (2 * s.L + 1) * s.h  # which TP leaves whole
    assert s.gathered == (total - norms) / tp + norms
    assert s.local == s.gathered / fsdp


def figures(capsys, *flags) -> dict[str, str]:
    plan.main([*flags])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


def test_a_plan_reacts_as_it_should(capsys):
    """Half the rows, half the cache; twice the ranks, half the state and less time; --tp splits."""
    base = figures(capsys, "--preset", "7b", "--gpus", "8", "--sample_rows", "128")
    assert base["GB always: weights"] == "3.8" and base["GB sampling: gathered"] == "15.2"
    # 28 layers * 4 heads * 128 * 2 tensors * 2 bytes * 4096 tokens * 128 rows, and a layer more
    assert base["GB sampling: keys and values"] == f"{57344 * 4096 * 128 * 29 / 28 / 1e9:.1f}"
    assert base["fits 80, 141, 192 GB"] == "yes, yes, yes"
    rows = base["sample_rows that fit 80, 141, 192 GB"].split(", ")[0]
    for n, fits in ((int(rows), "yes"), (int(rows) + 16, "no")):
        other = figures(capsys, "--preset", "7b", "--gpus", "8", "--sample_rows", str(n))
        assert other["fits 80, 141, 192 GB"].split(", ")[0] == fits
    more = figures(capsys, "--preset", "7b", "--gpus", "16", "--tp", "2", "--sample_rows", "128")
    assert more["TP x FSDP"] == "2 x 8" and more["GB always: weights"] == "1.9"
    assert more["GB sampling: gathered"] == "7.6"
    assert float(base["FLOPs of sampling, training"].split(", ")[1]) == pytest.approx(
        10 * 7.07e9 * 512 * 16 * (150 + 896), rel=0.1)  # 10 a token and parameter, and attention


def test_an_impossible_layout_is_refused_in_a_sentence(capsys):
    for flags in (["--tp", "8"], ["--gpus", "6", "--tp", "4"], ["--fsdp", "3"], ["--tp", "16"]):
        with pytest.raises(SystemExit, match="must divide"):
            plan.main(["--preset", "7b", *flags])

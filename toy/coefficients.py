"""How hard a token is pushed: the gradient coefficient of NFT and GRPO against the ratio R.

`python toy/coefficients.py` draws toy/coefficients.png from the losses of nft.py by autograd; the
formulas are in Proposition 4.1 of the paper, and test_equivalence.py checks the curves (claim 7).
"""
import sys
from pathlib import Path

import torch
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import nft  # noqa: E402

CURVES = {  # label: loss, its settings, the line; the widest is drawn first, so that none hides
    "NFT, eps 1 (default)":
        (nft.nft_loss, dict(omega="grpo", eps=1.0), dict(color="lightskyblue", lw=7)),
    "NFT, eps 0.5": (nft.nft_loss, dict(omega="grpo", eps=0.5), dict(color="crimson", lw=4.5)),
    "NFT, eps 0.1": (nft.nft_loss, dict(omega="grpo", eps=0.1), dict(color="gold", lw=2)),
    "GRPO, clip 0.2": (nft.grpo_loss, dict(clip_low=0.2, clip_high=0.2), dict(color="k", ls="--")),
}

def coefficient(loss_fn, R, r, r_hat, **settings):
    """What multiplies grad log pi(a_t) in the step on tokens of ratio R: - d loss / d logp.

    R (B,) a token each, r and r_hat (B,) or numbers -> (B,).
    """
    logp = R.log()[:, None].requires_grad_()
    r, r_hat = (torch.as_tensor(x, dtype=R.dtype).expand(len(R))[:, None] for x in (r, r_hat))
    loss = loss_fn(logp, torch.zeros_like(logp), r, r_hat, torch.ones_like(logp), **settings)[0]
    return -torch.autograd.grad(loss, logp)[0][:, 0]

def draw(path: Path) -> None:
    R = torch.linspace(0.02, 3, 2981, dtype=torch.float64)
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.4), sharex=True, layout="constrained")
    for row, r_hat in zip(axes, (0.5, 0.25)):
        for axis, r, verdict in zip(row, (1.0, 0.0), ("right", "wrong")):
            for label, (loss_fn, settings, line) in CURVES.items():
                y = coefficient(loss_fn, R, r, r_hat, **settings)
                y[1:][y.diff().abs() > 0.2] = float("nan")  # a clip is a gap, not a slope
                axis.plot(R, y, label=label, **line)
            on_policy = coefficient(nft.grpo_loss, torch.ones(1), r, r_hat)
            axis.plot(1, on_policy, "ko", ms=7, zorder=5, label="on-policy: all agree")
            axis.axhline(0, color="grey", lw=0.8)
            axis.axvline(1, color="grey", lw=0.8, ls=":")
            axis.set_title(f"{verdict} answer, $\\hat r$ = {r_hat}")
            axis.set_ylabel(r"coefficient on $\nabla \log \pi_\theta(a_t)$")
            axis.grid(alpha=0.25)
            axis.set_xlim(0, 3)
            if r == 0:
                axis.set_ylim(6 * on_policy.item(), 0.5 * -on_policy.item())
    for axis in axes[1]:
        axis.set_xlabel(r"ratio $R = \pi_\theta(a_t) / \pi_{old}(a_t)$")
    axes[0, 1].legend(loc="lower left")
    figure.suptitle("Right: NFT pulls all tokens alike, GRPO lets go above 1 + clip. "
                    "Wrong: NFT at eps 1 is GRPO above R = 1;\n"
                    "below, it fades where GRPO drops to 0. "
                    "A smaller eps pushes harder above R = 1.")
    figure.savefig(path, dpi=100)

if __name__ == "__main__":
    draw(HERE / "coefficients.png")

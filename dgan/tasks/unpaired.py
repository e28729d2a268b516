"""From images of one kind to images of another and back, without pairs: CycleGAN."""

from typing import Any

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives.losses import OverRanks, alone, loss_named
from dgan.tasks.added import Network, Terms
from dgan.tasks.balance import Balance
from dgan.tasks.history import History
from dgan.tasks.statistics import accuracy, moments
from dgan.tasks.task import Task


class Unpaired(Task):
    """CycleGAN (Zhu et al. 2017): two generators and two discriminators as two players.

    Either player is one module (`dgan.networks.both.Both`): `generator(a, b)` gives what becomes of
    `a` in the domain `b` and of `b` in the domain `a`, `discriminator(a, b)` the logits of each.
    With G from `a` to `b` and F back, the generators minimise

        adversarial · (loss of G + loss of F) + λ (E ‖F(G(a)) − a‖₁ + E ‖G(F(b)) − b‖₁)
            + identity · λ (E ‖G(b) − b‖₁ + E ‖F(a) − a‖₁),

    equations 1 to 3 and section 5.2 there, norms being means over pixels.

    Args:
        loss: a key of `objectives.losses.LOSSES`. Published is least squares without the ½ that
            `least_squares` has in its generator's part: `adversarial` is then 2.
        smoothing: see `loss_named`.
        cycle: λ.
        identity: relative to λ; 0 leaves it out.
        adversarial: weight of the generators' adversarial losses.
        halving: weight of the discriminators'. Published is ½ ((D(y) − 1)² + D(G(x))²), which
            `least_squares` is: 1.
        histories: of the domains `a` and `b`.
        balance: of both players' updates.
        over_ranks: of losses with a mean over the global batch within.
    """

    def __init__(
        self,
        *,
        loss: str,
        smoothing: float = 0.0,
        cycle: float,
        identity: float,
        adversarial: float = 1.0,
        halving: float = 1.0,
        histories: tuple[History, History],
        balance: Balance | None = None,
        over_ranks: OverRanks = alone,
    ) -> None:
        self.loss = loss_named(loss, smoothing=smoothing, over_ranks=over_ranks)
        self.cycle, self.identity = cycle, identity
        self.adversarial, self.halving = adversarial, halving
        self.histories = histories
        self.balance = balance or Balance()
        self.memory = dict(self.balance.memory)
        for history in histories:
            kept = history.memory.items()
            self.memory |= {f"history_{history.name}.{key}": tensor for key, tensor in kept}

    def discriminator_loss(
        self,
        discriminator: Network,
        generator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """Both discriminators' losses, against new images and some of the history's."""
        reals = batch["a"], batch["b"]
        with torch.no_grad():
            fake_b, fake_a = generator(*reals)
        new = fake_a.to(reals[0].dtype), fake_b.to(reals[1].dtype)
        shown = [history.exchange(x, draws) for history, x in zip(self.histories, new)]
        # All forward passes come before any differentiation.
        logits = discriminator(*reals), discriminator(*shown)
        of_each = {name: pair for name, pair in zip("ab", zip(*logits))}
        losses = {
            f"loss_{name}": self.halving * self.loss.discriminator(real, fake)
            for name, (real, fake) in of_each.items()
        }
        statistics = [torch.stack([moments(x), moments(y)]) for x, y in zip(reals, new)]
        return {
            "loss": _sum(losses),
            **losses,
            "real_logits": _mean(real.mean() for real, _ in of_each.values()),
            "fake_logits": _mean(fake.mean() for _, fake in of_each.values()),
            "accuracy": _mean(accuracy(*pair) for pair in of_each.values()),
            # As if the values of both domains were those of one sample.
            "moments": torch.cat(statistics, dim=-1),
        }

    def after_discriminator(self, metrics: dict[str, float], images: int) -> None:
        """Let the histories follow an update."""
        for history in self.histories:
            history.follow()

    def generator_loss(
        self,
        generator: Network,
        discriminator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """Both generators' adversarial, cycle and identity losses."""
        a, b = batch["a"], batch["b"]
        fake_b, fake_a = generator(a, b)
        again_b, again_a = generator(fake_a, fake_b)
        terms: Terms = {"cycle": _l1(again_a, a) + _l1(again_b, b)}
        loss = self.cycle * terms["cycle"]
        if self.identity:
            same_b, same_a = generator(b, a)
            terms["identity"] = _l1(same_a, a) + _l1(same_b, b)
            loss = loss + self.identity * self.cycle * terms["identity"]
        fakes = reals = discriminator(fake_a, fake_b)
        if self.loss.generator_sees_real:
            with torch.no_grad():
                reals = discriminator(a, b)
        losses = [self.loss.generator(real, fake) for real, fake in zip(reals, fakes)]
        terms |= {f"adversarial_{name}": value for name, value in zip("ab", losses)}
        return {"loss": loss + self.adversarial * sum(losses), **terms}


def _l1(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().mean()


def _sum(terms: Terms) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).mean()

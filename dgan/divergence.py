"""Notices that the training fails, and takes the run back to where it did not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgan.checkpoint import Checkpoints, load_newest
from dgan.draws import seed_of
from dgan.parallel.world import World
from dgan.step import Batch, NonFinite, Pace, Player, Players, adversarial_step

Metrics = dict[str, float]


class Diverged(ArithmeticError):
    """The training fails, and the policy is to stop, or has no more to offer."""


@dataclass(frozen=True)
class Sign:
    """What it means that a statistic of the discriminator stays beyond its bound."""

    meaning: str
    option: str
    statistics: tuple[str, ...]
    """The one of the largest magnitude counts."""
    advice: str
    above: bool = True


_GAMMA = "a larger --penalty.gamma.start and .end"
_WEAKER = f"{_GAMMA}, a lower --discriminator.learning_rate.start and .end"
_SLOWER = f"lower learning rates of both players, {_GAMMA}"

SIGNS = {
    "saturated": Sign(
        "the discriminator is saturated: it tells all pairs apart and teaches nothing",
        "accuracy",
        ("accuracy",),
        _WEAKER,
    ),
    "fooled": Sign(
        "the discriminator is fooled: it takes all generated samples for the real ones",
        "accuracy",
        ("accuracy",),
        "a larger discriminator, more --train.discriminator_updates",
        above=False,
    ),
    "collapsed": Sign(
        "the generator has collapsed: its samples all look alike",
        "diversity",
        ("diversity",),
        f"another --task.loss, {_SLOWER}",
        above=False,
    ),
    "logits": Sign(
        "the discriminator's logits explode", "logits", ("real_logits", "fake_logits"), _SLOWER
    ),
    "penalty": Sign("the discriminator's gradients explode", "penalty", ("r1", "r2"), _SLOWER),
}
"""By the name under which `divergence/alarm` of the metrics has it; `nonfinite` is one more."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong, by name and in words, and what may help."""

    name: str
    message: str
    advice: str


def patience_for(steps: int) -> int:
    """Steps in a row that are a sign, in a run of `steps`: it must ring before the end."""
    return min(max(steps // 5, 100), 1000)


class Guard:
    """Watches every step's metrics, which all ranks share, and so decides the same on all of them.

    Args:
        policy: `stop` or `rollback`.
        patience: steps in a row that a statistic may stay beyond its bound.
        learning_rate: what each rollback multiplies the learning rates by.
        at_most: rollbacks of the run.
        bounds: of the options in `SIGNS`; 0 is none.

    Attributes:
        alarm: of the last step, if one rang.
        rollbacks: of this run.
        calm: the last step at whose end no alarm was building up.
    """

    def __init__(
        self, *, policy: str, patience: int, learning_rate: float, at_most: int, **bounds: float
    ) -> None:
        self.policy, self.patience = policy, patience
        self.learning_rate, self.at_most = learning_rate, at_most
        self.bounds = {
            name: bounds[sign.option] if name != "fooled" else 1 - bounds[sign.option]
            for name, sign in SIGNS.items()
            if bounds[sign.option]
        }
        self.alarm: Alarm | None = None
        self.rollbacks = self.calm = 0
        # How many steps in a row each statistic has been beyond its bound.
        self._counts = dict.fromkeys(self.bounds, 0)
        self._failed: Player | None = None

    def step(
        self, players: Players, stream: Iterator[Batch], step: int, pace: Pace, world: World
    ) -> Metrics:
        """`adversarial_step` with the draws and the rates of after the rollbacks; sets `alarm`.

        Returns:
            Its metrics; none if its update was not finite.
        """
        if self.rollbacks:
            seed = seed_of(pace.seed, "rollback", self.rollbacks)
            pace = replace(pace, seed=seed, learning_rate=self.learning_rate**self.rollbacks)
        try:
            metrics = adversarial_step(players, stream, step, pace, world)
        except NonFinite as error:
            self._failed = error.player
            self.alarm = Alarm("nonfinite", str(error), f"--train.precision float32, {_SLOWER}")
            return {}
        rung = [name for name in self.bounds if self._count(name, metrics) >= self.patience]
        self.alarm = self._alarm(rung[0], step, metrics) if rung else None
        if not any(self._counts.values()):
            self.calm = step
        return metrics

    def respond(
        self, step: int, players: Players, checkpoints: Checkpoints, say: Callable[[str], None]
    ) -> None:
        """Roll back after an alarm of `step`, if that is the policy.

        Everything in `players` is again that of the newest good checkpoint of step `calm` or
        before. What is newer than that stays where it is, until `Checkpoints` makes room: the
        count of steps goes on, so a checkpoint of `step`, which the caller must save, is newer
        still. A run that is killed before comes to the same alarm again.

        Raises:
            Diverged: on every rank; the policy is another, or there is nothing to go back to.
        """
        assert self.alarm is not None
        checkpoints.world.at("rollback")
        good = checkpoints.until(self.calm)
        if self.policy != "rollback" or self.rollbacks == self.at_most or not good:
            words = self._last_words(step, good)
            say(words)
            raise Diverged(words)
        if self._failed is not None:
            # Under every strategy a step forgets its gradients, and what it writes is replaced.
            self._failed.step(0)
            self._failed = None
        path, _ = load_newest(good, players.state(), distributed=True, warn=say)
        players.loaded()
        self.rollbacks += 1
        self.calm, self._counts = step, dict.fromkeys(self._counts, 0)
        say(
            f"{self.alarm.message}\nstep {step}: rolled back to {path} (rollback {self.rollbacks} "
            f"of at most {self.at_most}); going on with other draws and the data that comes next"
        )

    def metrics(self) -> dict[str, Any]:
        """What is logged beside the statistics."""
        rung = {"divergence/alarm": self.alarm.name} if self.alarm else {}
        return {"divergence/rollbacks": self.rollbacks, **rung}

    def state_dict(self) -> dict[str, Any]:
        """What decides when the next alarm rings; JSON."""
        return {"rollbacks": self.rollbacks, "calm": self.calm, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, of perhaps other bounds; an empty one is the start."""
        self.rollbacks, self.calm = state.get("rollbacks", 0), state.get("calm", 0)
        counts = state.get("counts", {})
        self._counts = {name: counts.get(name, 0) for name in self.bounds}

    def _count(self, name: str, metrics: Metrics) -> int:
        """How many steps in a row show the sign `name`, of those that can; 0 if this one cannot."""
        value, bound = _largest(name, metrics), self.bounds[name]
        if value is None:
            return 0
        beyond = value >= bound if SIGNS[name].above else value <= bound
        self._counts[name] = self._counts[name] + 1 if beyond else 0
        return self._counts[name]

    def _alarm(self, name: str, step: int, metrics: Metrics) -> Alarm:
        sign = SIGNS[name]
        found = " or ".join(f"discriminator/{statistic}" for statistic in sign.statistics)
        message = (
            f"step {step}: {sign.meaning}: {found} is {_largest(name, metrics):.4g}, and was "
            f"{'at least' if sign.above else 'at most'} {self.bounds[name]:.4g} "
            f"(--divergence.{sign.option}) for {self._counts[name]} steps in a row "
            "(--divergence.patience)"
        )
        return Alarm(name, message, sign.advice)

    def _last_words(self, step: int, good: list[Path]) -> str:
        assert self.alarm is not None
        last = f"{good[-1]} is from before that, and usable" if good else "No checkpoint is older"
        advice = f"Try {self.alarm.advice}"
        if self.policy != "rollback":
            advice += ", or go on with --divergence.policy rollback"
        elif self.rollbacks:
            last = (
                f"The rollbacks so far, {self.rollbacks} of at most {self.at_most} "
                f"(--divergence.at_most), did not help. {last}"
            )
        return f"{self.alarm.message}\n{last}. {advice}"


def _largest(name: str, metrics: Metrics) -> float | None:
    """Of a sign's statistics, if the step took them: a lazy penalty is not in every step."""
    keys = [f"discriminator/{statistic}" for statistic in SIGNS[name].statistics]
    return max((abs(metrics[key]) for key in keys if key in metrics), default=None)

"""How much is measured: QUICK in some minutes on two processors, FULL in about an hour and a half."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Steady:
    """Events a second, for so many seconds, at a label server that takes so many milliseconds a call."""

    per_second: float
    seconds: float
    milliseconds: float


@dataclass(frozen=True)
class Sizes:
    """silence: seconds before each idle sample; drain_idle: seconds of ESL_DRAIN_IDLE_SECONDS; bursts: milliseconds a
    call; hold: seconds that a call of the hung store takes; fills: labels and milliseconds a call;
    receiver_cases: connections and variants."""

    name: str
    products: int
    drain_idle: float
    idle_samples: int
    silence: float
    steady: tuple[Steady, ...]
    bursts: tuple[float, ...]
    hang_per_second: float
    hang_seconds: float
    hold: float
    webhook_fills: tuple[tuple[int, float], ...]
    night_fills: tuple[tuple[int, tuple[float, ...]], ...]
    prior_labels: int
    servers: int
    shops: int
    variants_of_a_shop: int
    receiver_seconds: float
    receiver_turns: int
    receiver_cases: tuple[tuple[int, int], ...]


QUICK = Sizes(
    name="quick",
    products=2_000,
    drain_idle=2,
    idle_samples=20,
    silence=2.4,
    steady=(Steady(20, 5, 5), Steady(20, 5, 500), Steady(100, 20, 5)),
    bursts=(),
    hang_per_second=10,
    hang_seconds=4,
    hold=4.5,
    webhook_fills=((10_000, 5), (10_000, 500)),
    night_fills=((1_000, (500,)), (10_000, (500,))),
    prior_labels=100,
    servers=2,
    shops=2,
    variants_of_a_shop=200,
    receiver_seconds=1.5,
    receiver_turns=3,
    receiver_cases=((50, 1),),
)

_LATENCIES = (5.0, 100.0, 500.0, 2_000.0)
FULL = Sizes(
    name="full",
    products=2_000,
    drain_idle=20,
    idle_samples=20,
    silence=60,
    steady=(
        *(Steady(rate, max(60 / rate, 30), ms) for ms in _LATENCIES for rate in (1, 5, 20)),
        *(Steady(100, 300 if ms == 5 else 30, ms) for ms in _LATENCIES),
    ),
    bursts=_LATENCIES,
    hang_per_second=10,
    hang_seconds=30,
    hold=15,
    webhook_fills=(
        (1_000, 5),
        (10_000, 5),
        (10_000, 100),
        (10_000, 500),
        (10_000, 2_000),
        (100_000, 5),
        (100_000, 500),
    ),
    night_fills=((1_000, (5,)), (10_000, (500, 100, 5)), (100_000, (5,))),
    prior_labels=200,
    servers=10,
    shops=20,
    variants_of_a_shop=5_000,
    receiver_seconds=5,
    receiver_turns=3,
    receiver_cases=((1, 1), (50, 1), (1, 100), (50, 100)),
)

"""Optuna proposes the configurations of a sweep, each from the results of those before it."""

from __future__ import annotations

from typing import Any

from rankwright.common.hashing import stable_hash
from rankwright.evaluation.sweep_table import SweepTable
from rankwright.recipe.sweep import Factor
from rankwright.recipe.sweep_runs import LoadedSweep
from rankwright.recipe.sweep_trials import Proposal, proposal_of

# At most so many proposals are drawn evenly, before any follows from results.
MOST_DRAWN = 10


def propose(loaded: LoadedSweep, table: SweepTable) -> Proposal:
    """The next configuration by Optuna's TPE, from the mean nDCG@10 on dev of each configuration so far.

    It depends on the results and on design.optuna.seed alone: no state is kept between proposals.
    """
    import optuna

    design, trials = loaded.sweep.design.optuna, loaded.trials
    assert design is not None and trials is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {factor.key: _space(factor) for factor in trials.factors}
    sampler = optuna.samplers.TPESampler(
        seed=stable_hash("trial", design.seed, len(trials.proposals)) % 2**32,
        n_startup_trials=min(MOST_DRAWN, max(1, design.runs // 3)),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    told = [(proposal_of(trials.factors, loaded.default.settings), loaded.default.name)]
    for proposal, name in [*told, *zip(trials.proposals, trials.names, strict=True)]:
        value = table.of(name).dev if name is not None else None
        if proposal is not None:
            state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
            params = {key: _typed(spaces[key], place) for key, place in proposal.items()}
            study.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=spaces, value=value))
    return dict(study.ask(fixed_distributions=spaces).params)


def _space(factor: Factor) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not factor.values:
        # A share of the range, which is even in the logarithm where the factor is.
        return FloatDistribution(0.0, 1.0)
    last = len(factor.values) - 1
    # The points of a range have an order, the values of a list have none.
    return IntDistribution(0, last) if factor.low < factor.high else CategoricalDistribution(tuple(range(last + 1)))


def _typed(space: Any, place: float) -> float:
    from optuna.distributions import FloatDistribution

    return float(place) if isinstance(space, FloatDistribution) else int(place)

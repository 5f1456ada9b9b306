import numpy as np

from lclm_jax.config.train import SpikeConfig
from lclm_jax.train.supervise.loss_spikes import SpikeDetector


def told(detector, losses):
    return [found for step, loss in enumerate(losses) if (found := detector.step(step, loss)) is not None]


def test_a_spike_is_patience_losses_far_above_the_usual():
    random = np.random.default_rng(0)
    calm = (2 + 0.01 * random.standard_normal(60)).tolist()
    settings = SpikeConfig(window=40, deviations=8, patience=2)
    assert told(SpikeDetector(settings), calm) == []
    assert told(SpikeDetector(settings), [*calm, 5.0, 2.0, 5.0]) == []  # never two in a row
    assert told(SpikeDetector(settings), [*calm, 5.0, 5.0, 2.0, 6.0, 6.0]) == [(60, 61), (63, 64)]
    assert told(SpikeDetector(settings), [2.0] * 19 + [9.0, 9.0]) == []  # half a window is not known yet
    assert told(SpikeDetector(SpikeConfig(window=40, deviations=None)), [*calm, 50.0, 50.0, 50.0]) == []


def test_a_loss_that_falls_fast_is_no_spike():
    falling = (10 * 0.97 ** np.arange(200)).tolist()
    assert told(SpikeDetector(SpikeConfig(window=40, deviations=5, patience=1)), falling) == []

import copy

import pytest

from lclm_jax.train.checkpoints.provenance import ChangedConfigError, check_provenance, provenance


def test_keys_that_a_checkpoint_does_not_know_must_stand_at_their_defaults(make_config):
    config = make_config()
    stored = provenance(config, "only")
    check_provenance(config, "only", stored)
    older = copy.deepcopy(stored)
    del older["inputs"]["stages"]["only"]["decay_share"]
    del older["inputs"]["train"]["optimizer"]
    check_provenance(config, "only", older)
    changed = make_config(decay_share=0.5)
    with pytest.raises(ChangedConfigError, match=r"stages.only.decay_share: None -> 0.5"):
        check_provenance(changed, "only", older)
    null = copy.deepcopy(stored)
    null["inputs"]["stages"]["only"]["decay_share"] = None  # stored as null, which is not the default
    with pytest.raises(ChangedConfigError, match=r"decay_share: None -> 0.2"):
        check_provenance(config, "only", null)


def test_a_new_key_does_not_change_the_hash_of_an_earlier_stage(make_config):
    stages = {
        name: {"lr": {"adapter": 1e-3}, "steps": 5, "mixture": {"cpt": 1}, "batch_rows": 8} for name in ("one", "two")
    }
    plain = make_config(stages=stages)
    written_out = make_config(stages={**stages, "one": {**stages["one"], "decay_share": 0.2}})
    other = make_config(stages={**stages, "one": {**stages["one"], "decay_share": 0.3}})
    assert provenance(plain, "two")["ancestors"] == provenance(written_out, "two")["ancestors"]
    with pytest.raises(ChangedConfigError, match="started from one"):
        check_provenance(other, "two", provenance(plain, "two"))

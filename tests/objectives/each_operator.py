"""One call of each operator that has a rule: helpers."""

import pytest
import torch
import torch.nn.functional as F
from around import Case, Operator, name_of
from cheaper_cases import CHEAPER_CASES
from operator_cases import ATTENTION, BATCH_NORM, INSTANCE_NORM, LAYER_NORM, SOFTMAX

EACH: dict[Operator, Case] = {
    F.layer_norm: LAYER_NORM[0],
    F.instance_norm: INSTANCE_NORM[1],
    F.batch_norm: BATCH_NORM[2],
    torch.softmax: SOFTMAX[0],
    F.scaled_dot_product_attention: ATTENTION[0],
    **{operator: cases[0] for operator, cases in CHEAPER_CASES.items()},
}
each = pytest.mark.parametrize(("operator", "case"), EACH.items(), ids=map(name_of, EACH))


def on_many(case: Case) -> Case:
    """More samples: one sample's rounding varies too much to compare."""
    return Case(case.name, (64, *case.shape[1:]), case.call, case.affine)

"""The comparison of a backend with the reference finds the node that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lattice.backends.compare import compare
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.models import family
from lattice.nn import KV
from lattice.program import trace
from lattice.step import Step
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"


def llama(model):
    def build(p):
        state = [
            KV(*(p.input(f"{i}.{n}", *s, kind="state", dtype="f32") for n, s in kv._asdict().items()))
            for i, kv in enumerate(model.state_shapes(2))
        ]
        return {"logits": model.head(model(p.step(2), state)[0])}

    return trace(build)


def test_nothing_differs(cpu_target):
    opened = open_model(MODELS / "llama-9q3kv", family)
    step = Step.of([[1, 2, 3, 4, 5]], page_table=np.array([[1, 0]], np.int32))
    program = llama(opened.model)
    assert compare(program, CpuBackend(cpu_target), opened.weights, step, tolerance=1e-4) is None


def test_the_first_wrong_node_is_named():
    """A backend whose rope turns the wrong way is caught at its first rope."""
    opened = open_model(MODELS / "llama-9q3kv", family)
    step = Step.of([[1, 2, 3]], page_table=np.array([[1, 0]], np.int32))
    program = llama(opened.model)

    class Wrong(ReferenceBackend):
        def kernels(self):
            return super().kernels() - {"rotated_kv"}  # as the CPU: rope stays a node of its own

        def compile(self, program, weights=None, capacity=None, state=None):
            nodes = [
                type(n)(n.op, n.args, n.attributes | {"inverse": True}, n.outputs) if n.op.name == "rope" else n
                for n in program.nodes
            ]
            return super().compile(program.with_nodes(nodes), weights, capacity, state)

    found = compare(program, Wrong(), opened.weights, step)
    first = next(node for node in program.nodes if node.op.name == "rope")
    assert found is not None and found.node.outputs[0].name == first.outputs[0].name
    assert "rope(" in str(found) and "error" in str(found)

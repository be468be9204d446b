"""Programs: data that can be printed, differentiated, fused and planned."""

from lattice.program.fuse import fuse
from lattice.program.grad import gradients
from lattice.program.ir import Node, Program
from lattice.program.memory import Layout, place
from lattice.program.show import show
from lattice.program.trace import trace

__all__ = ["Layout", "Node", "Program", "fuse", "gradients", "place", "show", "trace"]

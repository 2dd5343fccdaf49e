"""Reading a trained model, whatever form it comes in."""

from edgekit.load.candidate import Candidate, load_candidate

__all__ = ["Candidate", "load_candidate"]

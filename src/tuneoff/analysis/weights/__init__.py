"""What training did to a weight matrix: norms, spectrum, and leading directions that the base does not have."""

from tuneoff.analysis.weights.intruders import BaseSpectrum
from tuneoff.analysis.weights.layers import layer_change, low_rank_change
from tuneoff.analysis.weights.spectrum import Limits

__all__ = ["BaseSpectrum", "Limits", "layer_change", "low_rank_change"]

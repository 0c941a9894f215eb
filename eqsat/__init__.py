"""eqsat: an e-graph superoptimizing search compiler for tensor programs."""

__version__ = "0.1.0"

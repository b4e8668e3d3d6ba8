"""Making thin models: pruning, distillation, quantisation-aware training. Needs `pip install thinbert[train]`."""

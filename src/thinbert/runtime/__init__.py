"""How a model runs: the native engine and what it chose on this machine."""
